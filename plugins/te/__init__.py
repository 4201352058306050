"""Temporal ensembling: predictions are held near each sample's averaged clean prediction (Dong et al., 2022).

Torch-free here; the card is README.md.
"""
