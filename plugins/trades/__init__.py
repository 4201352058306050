"""TRADES (Zhang et al., 2019).

Torch-free here; the card is README.md.
"""
