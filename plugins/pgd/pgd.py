"""PGD adversarial training.

A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, Towards Deep Learning Models Resistant to Adversarial Attacks,
ICLR 2018, arXiv:1706.06083. Settings as in L. Rice, E. Wong, J. Z. Kolter, Overfitting in adversarially robust deep
learning, ICML 2020 (released code).
"""

from __future__ import annotations

from timm_robust.data.batch import Batch
from timm_robust.defense import Defense, Perturbed, TrainContext
from timm_robust.errors import UserError

from .friendly import EarlyStoppedPGD, patience
from .options import PgdOptions


class PGD(Defense):
    """Cross-entropy on PGD's images; the attack is the host's default, or stops early with `stop_after`."""

    options: PgdOptions

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        stop_after = self.options.stop_after
        if stop_after and run.threat.norm != "Linf":
            raise UserError(f"option 'stop_after' of method 'pgd' knows the norm Linf only, not {run.threat.norm}")
        self.patience = patience(stop_after) if stop_after else [(0.0, 0)]
        self.stop_after = self.patience[0][1]

    def on_epoch_start(self, epoch: int) -> None:
        self.stop_after = [count for share, count in self.patience if share <= epoch / self.run.epochs][-1]

    def perturb(self, batch: Batch) -> Perturbed:
        if not self.stop_after:
            return super().perturb(batch)
        settings = {"stop_after": self.stop_after, **self.pgd_settings()}
        return Perturbed(self.attack(batch.images, batch.targets, EarlyStoppedPGD, **settings))
