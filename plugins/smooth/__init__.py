"""The smooth activation swap (`--activation silu`): its card, and the census that proves it on every timm family.

The swap itself lives in `timm_robust.models.activations`, because a checkpoint must be loadable without plugins.
"""
