"""PGD adversarial training (Madry et al., 2018).

Torch-free here; the card is README.md.
"""
