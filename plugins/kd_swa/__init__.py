"""KD-SWA: robust training smoothed by two teachers and averaged weights (Chen et al., 2021).

Torch-free here; the card is README.md.
"""
