"""ZeroGrad and MultiGrad: one step along the pixels whose sign can be trusted (Golgooni et al., 2021).

Torch-free here; the card is README.md.
"""
