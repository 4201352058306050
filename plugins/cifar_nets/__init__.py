"""CIFAR-sized residual networks that timm lacks, each also with SiLU.

Torch-free here; the card is README.md.
"""
