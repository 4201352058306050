"""FGSM adversarial training with a random start (Wong, Rice, Kolter, 2020).

Torch-free here; the card is README.md.
"""
