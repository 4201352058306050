"""Stochastic weight averaging (SWA).

P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov, A. G. Wilson, Averaging Weights Leads to Wider Optima and Better
Generalization, UAI 2018, arXiv:1803.05407. In adversarial training: T. Chen, Z. Zhang, S. Liu, S. Chang, Z. Wang,
Robust Overfitting May Be Mitigated by Properly Learned Smoothening, ICLR 2021.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.utils import distribute_bn
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from timm_robust.models.pixel_model import PixelModel
from timm_robust.modifier import Modifier

from .options import SwaOptions


class SWA(Modifier):
    """Saves and evaluates the arithmetic mean of the weights at the ends of epochs.

    BatchNorm statistics, which do not belong to averaged weights, are recomputed in one pass over the epoch's clean,
    augmented training images.
    """

    options: SwaOptions

    def eval_model(self, model: PixelModel) -> PixelModel:
        self.average = AveragedModel(model)
        self.average.requires_grad_(False).eval()
        return self.average.module

    def on_epoch_end(self, epoch: int) -> None:
        if epoch <= self.options.start * self.run.epochs:
            self.average.n_averaged.zero_()  # the next update then overwrites the average
        self.average.update_parameters(self.run.unwrapped_model)
        if self.average.n_averaged > 1:
            self._take_statistics()
        else:
            for mine, theirs in zip(self.average.module.buffers(), self.run.unwrapped_model.buffers(), strict=True):
                mine.copy_(theirs)

    def _take_statistics(self) -> None:
        network: nn.Module = self.average.module
        with self.run.attacker.autocast():
            update_bn((batch.images for batch in self.run.batches()), network)
        network.eval()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            distribute_bn(network, torch.distributed.get_world_size(), reduce=True)

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)
