"""LBGAT: a natural network, trained at the same time, guides the logits of the robust one (Cui et al., 2021).

Torch-free here; the card is README.md.
"""
