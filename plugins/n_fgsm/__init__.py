"""N-FGSM: one step from strong noise, without projection (de Jorge et al., 2022).

Torch-free here; the card is README.md.
"""
