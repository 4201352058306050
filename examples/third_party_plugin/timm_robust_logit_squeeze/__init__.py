"""Adversarial training with squeezed logits; torch-free here, the method is in `logit_squeeze.py`."""
