"""FGSM adversarial training without a random start (Goodfellow et al., 2015).

Torch-free here; the card is README.md.
"""
