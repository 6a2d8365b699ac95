"""Training recipes. `recipe.py` is the built-in model's, stage by stage."""
