"""Parts of the module's view that are windows or sections of their own. Only Slicer's program can import them."""
