"""Free adversarial training: each backward serves the weights and the perturbation (Shafahi et al., 2019).

Torch-free here; the card is README.md.
"""
