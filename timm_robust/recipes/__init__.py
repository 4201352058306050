"""Recipes: training settings, and named sets of them. Torch-free."""
