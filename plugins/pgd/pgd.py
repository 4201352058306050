"""PGD adversarial training.

A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, Towards Deep Learning Models Resistant to Adversarial Attacks,
ICLR 2018, arXiv:1706.06083. Settings as in L. Rice, E. Wong, J. Z. Kolter, Overfitting in adversarially robust deep
learning, ICML 2020 (released code).
"""

from __future__ import annotations

from timm_robust.defense import Defense


class PGD(Defense):
    """Cross-entropy on PGD's images; the attack is the host's default."""
