"""Distillation: the observer that judges images, and the folder that the distilled data set is written into."""
