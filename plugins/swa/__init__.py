"""Stochastic weight averaging (Izmailov et al., 2018): a modifier.

Torch-free here; the card is README.md.
"""
