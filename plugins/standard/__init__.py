"""Standard training: clean images only, the reference for every defense.

Torch-free here; the card is README.md.
"""
