"""Distilled data sets: the observer that judges images, and the folder that holds them."""
