"""ATAS: a step size for each sample, small where its gradient is large (Huang et al., 2022).

Torch-free here; the card is README.md.
"""
