"""How good the systems' readings are, measured on studies whose truth is known."""
