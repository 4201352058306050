"""Random real images: the baseline that a distilled data set has to beat.

Torch-free here; the card is README.md.
"""
