"""FGSM-MEP: the attack starts from what it found in earlier epochs (Jia et al., 2022).

Torch-free here; the card is README.md.
"""
