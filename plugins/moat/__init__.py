"""MOAT: stages of benign, single-step and multi-step training in turn (Wang et al., 2021).

Torch-free here; the card is README.md.
"""
