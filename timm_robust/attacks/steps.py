"""Steps of gradient attacks, and the projection into the threat ball."""

from __future__ import annotations

import torch
from torch import Tensor

from timm_robust.threat import Threat


def signed_step(adversarial: Tensor, gradient: Tensor, images: Tensor, *, alpha: float | Tensor, eps: float) -> Tensor:
    """A step along the gradient's sign, back into the Linf ball around the images and into [0, 1]; for attacks to use.

    Args:
        adversarial, gradient, images: [N, C, H, W].
        alpha: length of the step, one for all or [N, 1, 1, 1].
        eps: radius.
    """
    moved = adversarial.detach() + alpha * gradient.sign()
    return (images + (moved - images).clamp(-eps, eps)).clamp(0, 1)


def project(adversarial: Tensor, images: Tensor, threat: Threat, eps_multiplier: float = 1.0) -> Tensor:
    """The nearest point inside the ball and inside [0, 1]; pixels that are NaN or infinite become the clean ones.

    Args:
        adversarial, images: float [N, C, H, W]; `images` in [0, 1].
        eps_multiplier: radius of the ball in eps.
    """
    radius = eps_multiplier * threat.eps
    adversarial = torch.where(adversarial.isfinite(), adversarial, images)
    if threat.norm == "Linf":
        lower, upper = (images - radius).clamp_(min=0), (images + radius).clamp_(max=1)
        return torch.minimum(torch.maximum(adversarial, lower), upper)
    delta = adversarial - images
    length = delta.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
    inside = images + delta * (radius / length).clamp(max=1)
    return inside.clamp(0, 1)  # moves each pixel towards its clean value, so the ball is kept
