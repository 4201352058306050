"""Adversarial weight perturbation (Wu, Xia, Wang, 2020): a modifier.

Torch-free here; the card is README.md.
"""
