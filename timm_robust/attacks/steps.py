"""Starts, steps and projections of gradient attacks, shared by all of them so that the ball is enforced in one way."""

from __future__ import annotations

import torch
from torch import Tensor

from timm_robust.threat import Threat


def uniform_start(images: Tensor, eps: float) -> Tensor:
    """A uniform point of the Linf ball around each image, clipped to [0, 1].

    Args:
        images: float [N, C, H, W] in [0, 1].
        eps: radius, in units of the [0, 1] range.
    """
    return (images + torch.empty_like(images).uniform_(-eps, eps)).clamp_(0, 1)


def gaussian_start(images: Tensor, deviation: float = 0.001) -> Tensor:
    """The images plus a little Gaussian noise, clipped to [0, 1]; where TRADES, MART and RSLAD start.

    Args:
        images: float [N, C, H, W] in [0, 1].
        deviation: standard deviation, in units of the [0, 1] range.
    """
    return (images + deviation * torch.randn_like(images)).clamp_(0, 1)


def corner_start(images: Tensor, distance: float) -> Tensor:
    """A random corner of a box around each image, clipped to [0, 1].

    Args:
        images: float [N, C, H, W] in [0, 1].
        distance: half width of the box, in units of the [0, 1] range.
    """
    corner = torch.empty_like(images).bernoulli_(0.5).mul_(2).sub_(1)
    return (images + distance * corner).clamp_(0, 1)


def unit(gradient: Tensor) -> Tensor:
    """The gradient of each sample scaled to L2 norm 1; zero stays zero.

    Args:
        gradient: [N, C, H, W].
    """
    return gradient / _lengths(gradient)


def signed_step(adversarial: Tensor, gradient: Tensor, images: Tensor, *, alpha: float | Tensor, eps: float) -> Tensor:
    """A step along the gradient's sign, projected into the Linf ball around the images and then clipped to [0, 1].

    Args:
        adversarial, gradient, images: [N, C, H, W].
        alpha: step size, one for all samples or [N, 1, 1, 1].
        eps: radius.
    """
    moved = adversarial.detach() + alpha * gradient.sign()
    return (images + (moved - images).clamp(-eps, eps)).clamp(0, 1)


def clip_linf(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """The nearest point in the intersection of the Linf ball and [0, 1]; NaN stays NaN.

    Args:
        adversarial, images: float [N, C, H, W]; `images` in [0, 1].
        eps: radius.
    """
    lower, upper = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
    return torch.minimum(torch.maximum(adversarial, lower), upper)


def project(adversarial: Tensor, images: Tensor, threat: Threat, eps_multiplier: float = 1.0) -> Tensor:
    """The nearest point in the threat ball, inside [0, 1]; pixels that are NaN or infinite become the clean ones.

    Args:
        adversarial, images: float [N, C, H, W]; `images` in [0, 1].
        threat: ball; L1 is held to the L2 ball of its radius, which contains it.
        eps_multiplier: radius of the ball in eps.
    """
    radius = eps_multiplier * threat.eps
    adversarial = torch.where(adversarial.isfinite(), adversarial, images)
    if threat.norm == "Linf":
        return clip_linf(adversarial, images, radius)
    delta = adversarial - images
    inside = images + delta * (radius / _lengths(delta)).clamp(max=1)
    return inside.clamp(0, 1)  # moves each pixel towards its clean value, so the ball is kept


def _lengths(values: Tensor) -> Tensor:
    """L2 norm of each sample, [N, 1, 1, 1]; at least 1e-12, so that it can be divided by."""
    return values.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
