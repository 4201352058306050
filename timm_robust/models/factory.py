"""Model factory: timm name or module in, `PixelModel` out.

    timm.create_model -> pretrained weights -> small-image stem -> activation swap -> PixelModel

Each step is recorded in a `ModelConfig`, from which `rebuild` makes the same network again with timm alone. Names of a
plugin's models are known once `timm_robust.register_models()` was called; the verbs of `timm_robust.api` do.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from timm_robust.errors import UserError, unknown
from timm_robust.models.activations import canonical_name, swap_activations
from timm_robust.models.pixel_model import ModelConfig, PixelModel
from timm_robust.models.stem import apply_stem
from timm_robust.models.timm_network import create, create_fitted, first_sentence


def build_model(
    model: str | nn.Module,
    *,
    num_classes: int,
    in_chans: int = 3,
    image_size: int,
    model_kwargs: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    activation: str | None = None,
    stem: str = "auto",
    data_mean: Sequence[float],
    data_std: Sequence[float],
) -> PixelModel:
    """Builds a timm model, or wraps a module, for images in [0, 1].

    Args:
        model: timm name (`resnet18`, `vit_tiny_patch16_224.augreg_in21k`), name of a registered plugin's model, or a
            module that takes normalised images.
        num_classes: number of logits.
        in_chans: number of image channels.
        image_size: height and width in pixels.
        model_kwargs: arguments for `timm.create_model`.
        pretrained: load timm's weights; their normalisation then replaces the data set's.
        activation: smooth activation to swap in (see `timm_robust.models.activations.ACTIVATIONS`); None: keep all.
        stem: `auto` for the small-image stem up to 64 pixels, `none` to keep all strides.
        data_mean: mean of the pixels in [0, 1], one value or one per channel.
        data_std: standard deviation of the pixels, > 0, likewise.

    Raises:
        UserError: unknown model, argument, stem or activation; an image size or number of classes that does not fit.
    """
    if stem not in ("auto", "none"):
        raise unknown("stem", stem, ("auto", "none"))
    for what, value, low in (("image_size", image_size, 1), ("num_classes", num_classes, 2), ("in_chans", in_chans, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise UserError(f"{what} {value!r}: expected an integer of at least {low}")
    mean, std = _per_channel(data_mean, in_chans, "data_mean"), _per_channel(data_std, in_chans, "data_std")
    config = ModelConfig(
        architecture=None, num_classes=num_classes, in_chans=in_chans, image_size=image_size, mean=mean, std=std
    )
    if isinstance(model, nn.Module):
        if model_kwargs or pretrained:
            raise UserError("model_kwargs and pretrained are for timm names: a module is taken as it is")
        network = model
        config = replace(config, module_class=f"{type(model).__module__}:{type(model).__qualname__}")
    else:
        network, config = create_fitted(model, config, dict(model_kwargs or {}), pretrained, stem)
    if activation is not None:
        config = replace(config, activation=canonical_name(activation))
        report = swap_activations(network, activation)
        if pretrained and report.replaced:
            warnings.warn(
                "activations of a pretrained model were swapped: its BatchNorm statistics no longer fit, so "
                "recalibrate or train them before trusting an accuracy",
                stacklevel=2,
            )
    built = PixelModel(network, config)
    _check_forward(built, stem)
    return built


def build_like(model: PixelModel, name: str | None = None, **kwargs: Any) -> PixelModel:
    """Another network for the same images and classes, with fresh weights.

    Args:
        model: model whose image size, classes and activation are taken.
        name: timm name; default: the same architecture.
        kwargs: arguments for `timm.create_model`.

    Raises:
        UserError: no name for a model that is a module of one's own.
    """
    config = model.config
    if name is None:
        if config.architecture is None:
            raise UserError(f"a second network like your own {config.module_class} cannot be made: name a timm model")
        return rebuild(replace(config, model_kwargs={**config.model_kwargs, **kwargs}))
    return build_model(
        name,
        num_classes=config.num_classes,
        in_chans=config.in_chans,
        image_size=config.image_size,
        model_kwargs=kwargs,
        activation=config.activation,
        data_mean=config.mean,
        data_std=config.std,
    )


def rebuild(config: ModelConfig, module: nn.Module | None = None) -> PixelModel:
    """The configured network with fresh weights: no trial, no download, no plugin machinery.

    Args:
        config: model configuration, such as a checkpoint's.
        module: instance of one's own class, needed only if the configuration names no architecture.

    Raises:
        UserError: the architecture is not registered, or the module is missing.
    """
    if config.architecture is None:
        if module is None:
            raise UserError(
                f"the model is your own {config.module_class}, which cannot be rebuilt from its configuration: pass an "
                "instance of it"
            )
        network = module
    else:
        if config.registered_by:
            _require_plugin(config)
            try:
                importlib.import_module(config.registered_by)
            except ImportError as error:
                raise UserError(
                    f"model {config.architecture!r} is registered by {config.registered_by}, which cannot be imported "
                    f"({error}): install the package it came with"
                ) from error
        network = create(config.architecture, config.num_classes, config.model_kwargs)
        apply_stem(network, config.stem)
    if config.activation is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, when the model was built
            swap_activations(network, config.activation)
    return PixelModel(network, config)


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def _check_forward(model: PixelModel, stem: str) -> None:
    """One real forward in eval mode: the head has the right size, the output is finite."""
    config = model.config
    name = config.architecture or config.module_class
    modes = {module: module.training for module in model.modules()}
    device = next((p.device for p in model.model.parameters()), torch.device("cpu"))
    try:
        model.eval().to(device)
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(2, config.in_chans, config.image_size, config.image_size, generator=generator)
        with torch.no_grad():
            logits = model(images.to(device))
    except UserError:
        raise
    except Exception as error:
        reason = first_sentence(error)
        raise UserError(
            f"model {name!r} cannot take {config.in_chans}-channel images of {config.image_size} pixels "
            f"({type(error).__name__}: {reason}): choose another image size"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if logits.shape != (2, config.num_classes):
        raise UserError(
            f"model {name!r} returns {tuple(logits.shape)} for 2 images: expected (2, {config.num_classes}), one logit "
            f"for each of the {config.num_classes} classes"
        )
    if not logits.isfinite().all():
        raise UserError(
            f"model {name!r} with stem {stem!r} returns values that are not finite at {config.image_size} pixels: "
            f"choose another image size"
        )


def _per_channel(values: Sequence[float], in_chans: int, what: str) -> list[float]:
    """One value per channel from one or from as many."""
    given = [float(v) for v in values]
    if len(given) not in (1, in_chans):
        raise UserError(f"{what} has {len(given)} values: expected 1 or {in_chans}, one per channel")
    if "std" in what and min(given) <= 0:
        raise UserError(f"{what} {given}: expected values above 0")
    return given * in_chans if len(given) == 1 else given


def _require_plugin(config: ModelConfig) -> None:
    """Refuses to import a module that no installed plugin has: a checkpoint must not choose what code runs.

    Raises:
        UserError: names the module.
    """
    module = str(config.registered_by)
    if module in sys.modules:
        return
    packages = {entry.module.rpartition(".")[0] for entry in importlib.metadata.entry_points(group="timm_robust")}
    if not any(package and f"{module}.".startswith(f"{package}.") for package in packages):
        raise UserError(
            f"model {config.architecture!r} is registered by {module}, which belongs to no installed plugin: install "
            "the package it came with"
        )
