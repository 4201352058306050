"""Adversarial weight perturbation (AWP).

D. Wu, S.-T. Xia, Y. Wang, Adversarial Weight Perturbation Helps Robust Generalization, NeurIPS 2020, arXiv:2004.05884.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor

from timm_robust.attacks.attack_mode import frozen_statistics
from timm_robust.defense import TrainContext
from timm_robust.modifier import Modifier
from timm_robust.utils.random import preserve_rng_state

from .options import AwpOptions

TINY = 1e-20


def weight_perturbation(weights: Sequence[Tensor], gradients: Sequence[Tensor], *, gamma: float) -> list[Tensor]:
    """The gradient of each layer, scaled to `gamma` times the norm of its weights (section 3.2, equation 10).

    Args:
        weights, gradients: tensors of equal shapes, one pair per layer.
        gamma: relative norm; 0.005 to 0.01 in the paper.
    """
    sizes = torch._foreach_norm(list(weights))
    lengths = torch._foreach_norm(list(gradients))
    scales = [gamma * size / (length + TINY) for size, length in zip(sizes, lengths, strict=True)]
    return torch._foreach_mul(list(gradients), scales)


class AWP(Modifier):
    """Ascends the loss in weight space, takes the update's gradient there, and restores the weights.

    The authors' code computes the ascent on a copy of the network and undoes the perturbation after the optimizer's
    step; here the weights are restored before it, bit for bit, so that weight decay acts on the weights themselves.
    """

    options: AwpOptions

    def setup(self, run: TrainContext) -> None:
        super().setup(run)
        self.active = False
        named = run.unwrapped_model.named_parameters()
        self.layers = [w for name, w in named if name.endswith("weight") and w.ndim > 1 and w.requires_grad]

    def on_epoch_start(self, epoch: int) -> None:
        self.active = self.options.gamma > 0 and epoch >= self.options.start * self.run.epochs

    @contextmanager
    def weights(self, loss: Callable[[], Tensor]) -> Iterator[None]:
        if not self.active:
            yield
            return
        kept = [weight.detach().clone() for weight in self.layers]
        step = weight_perturbation(kept, self._gradients(loss), gamma=self.options.gamma)
        try:
            with torch.no_grad():
                torch._foreach_add_(self.layers, step)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.layers, kept)

    def _gradients(self, loss: Callable[[], Tensor]) -> list[Tensor]:
        """Gradients of the loss for all layers; random state and BatchNorm statistics are left unchanged."""
        with ExitStack() as stack:
            stack.enter_context(preserve_rng_state())
            for network in (self.run.unwrapped_model, self.run.auxiliary_model):
                stack.enter_context(frozen_statistics(network) if network else nullcontext())
            value = loss() * self.run.attacker.gradient_scale  # a power of two, undone by the normalisation
            found = torch.autograd.grad(value, self.layers, allow_unused=True)
        gradients = [
            torch.zeros_like(weight) if gradient is None else gradient
            for weight, gradient in zip(self.layers, found, strict=True)
        ]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for gradient in gradients:  # every process ascends the loss of the whole batch
                dist.all_reduce(gradient)
        return gradients
