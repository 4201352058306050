"""SEAT: the loss is kept linear between an image and its adversarial twin (Li and Yu, 2022).

Torch-free here; the card is README.md.
"""
