"""RDED: small data sets of stitched real patches, and the student that learns from them (Sun et al., 2024).

Torch-free here; the card is README.md.
"""
