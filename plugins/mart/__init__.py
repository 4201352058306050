"""MART: TRADES' divergence, weighted by how unsure the network is of each clean image (Wang et al., 2020).

Torch-free here; the card is README.md.
"""
