"""SSAT: an encoder whose features of clean and adversarial images share information, read by k-NN (Chen et al., 2020).

Torch-free here; the card is README.md.
"""
