"""Guided adversarial training: a relaxation term guides the one step (Sriramanan et al., 2020).

Torch-free here; the card is README.md.
"""
