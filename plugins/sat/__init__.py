"""Smooth adversarial training (Xie et al., 2020).

Torch-free here; the card is README.md.
"""
