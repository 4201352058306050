"""Self-guided label refinement: each sample's label becomes an average of its own predictions (Li, Yu et al., 2024).

Torch-free here; the card is README.md.
"""
