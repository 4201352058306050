"""Nuclear-norm adversarial training (Sriramanan et al., 2021).

Torch-free here; the card is README.md.
"""
