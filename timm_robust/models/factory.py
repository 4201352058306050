"""timm model in, `PixelModel` out: fitted to the image size, activations swapped, normalising inside.

    timm.create_model -> pretrained weights -> small-image stem -> activation swap -> PixelModel

What was done stands in a `ModelConfig`, from which `rebuild` makes the same network again with timm alone.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.models import is_model, model_entrypoint
from torch import nn

from timm_robust.errors import UserError, unknown
from timm_robust.models import stem as stems
from timm_robust.models.activations import canonical_name, swap_activations
from timm_robust.models.pixel_model import ModelConfig, PixelModel
from timm_robust.threat import SMALL_IMAGE
from timm_robust.utils.random import preserve_rng_state


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
    """A timm model by name, or the user's own module, ready for images in [0, 1].

    Args:
        model: timm name (`resnet18`, `vit_tiny_patch16_224.augreg_in21k`), a plugin's model, or a module.
        image_size: height and width in pixels.
        model_kwargs: for `timm.create_model`.
        pretrained: load timm's weights; their normalisation then replaces the data set's.
        activation: smooth activation to swap in (see `timm_robust.models.activations.ACTIVATIONS`), None to leave all.
        stem: `auto` fits images of at most 64 pixels with a small-image stem, `none` leaves strides alone.
        data_mean: per channel or one for all, in [0, 1].
        data_std: likewise, > 0.

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
        network, config = _create_timm(model, config, dict(model_kwargs or {}), pretrained, stem)
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
        model: whose images, classes and activation it gets.
        name: timm name; by default the same architecture.
        kwargs: for `timm.create_model`.

    Raises:
        UserError: no name for a model that is the user's own module.
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
    """The network of a record with fresh weights: no trace, no download, no plugin machinery.

    Args:
        config: from a checkpoint.
        module: an instance of the user's own class, needed only where the record names no architecture.

    Raises:
        UserError: the architecture is not registered, or the module is missing.
    """
    if config.architecture is None:
        if module is None:
            raise UserError(
                f"the model is your own {config.module_class}, which a record cannot rebuild: pass an instance of it"
            )
        network = module
    else:
        if config.registered_by:
            try:
                importlib.import_module(config.registered_by)
            except ImportError as error:
                raise UserError(
                    f"model {config.architecture!r} is registered by {config.registered_by}, which cannot be imported "
                    f"({error}): install the package it came with"
                ) from error
        network = _create(config.architecture, config.num_classes, config.model_kwargs)
        stems.apply_stem(network, config.stem)
    if config.activation is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, when the model was built
            swap_activations(network, config.activation)
    return PixelModel(network, config)


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def _create_timm(
    name: str, config: ModelConfig, kwargs: dict[str, Any], pretrained: bool, stem: str
) -> tuple[nn.Module, ModelConfig]:
    """The inner network with its stem, and the completed record."""
    from timm_robust.plugin import get_manager  # here, because models without plugins are rebuilt without them

    get_manager().register_models()
    base = name.split(".")[0]
    if not is_model(base):
        raise unknown("model", name, timm.list_models(), hint="see timm-robust models")
    if "." in name and name not in timm.list_pretrained(f"{base}.*"):
        raise unknown("weights", name, [base, *timm.list_pretrained(f"{base}.*")])
    if pretrained and not _has_weights(name):
        raise UserError(f"model {name!r} has no pretrained weights in timm: train from scratch (pretrained=False)")
    try:
        json.dumps(kwargs)
    except TypeError:
        bad = next(k for k, v in kwargs.items() if not _is_plain(v))
        raise UserError(f"model argument {bad}={kwargs[bad]!r}: expected a number, text, list or mapping") from None
    for fixed in ("num_classes", "in_chans", "pretrained"):
        if fixed in kwargs:
            raise UserError(f"model argument {fixed!r} is set by the run: leave it out of model_kwargs")
    if config.in_chans != 3:
        kwargs["in_chans"] = config.in_chans
    with preserve_rng_state():  # trials draw weights too, and the seed must not depend on their number
        _try_kwargs(name, config.num_classes, kwargs)
        plan = stems.make_plan(
            lambda **extra: _create(name, config.num_classes, {**kwargs, **extra}),
            name,
            image_size=config.image_size,
            in_chans=config.in_chans,
            small=stem == "auto" and config.image_size <= SMALL_IMAGE,
            taken=frozenset(kwargs),
        )
    kwargs |= plan.kwargs
    try:
        network = _create(name, config.num_classes, kwargs, pretrained=pretrained)
    except Exception as error:
        if not pretrained:
            raise
        reason = _reason(error)
        raise UserError(
            f"pretrained weights of {name!r} could not be loaded ({type(error).__name__}: {reason}): check the network "
            f"or the cache, or train from scratch (pretrained=False)"
        ) from error
    surgery = {key: value for key, value in plan.surgery.items() if not (pretrained and key == "centre")}
    stems.apply_stem(network, surgery)
    cfg = getattr(network, "pretrained_cfg", None) or {}
    mean, std = config.mean, config.std
    if pretrained:
        mean, std = (_fold(cfg[key], config.in_chans) for key in ("mean", "std"))
    module = model_entrypoint(base).__module__
    return network, replace(
        config,
        architecture=name,
        model_kwargs=kwargs,
        mean=mean,
        std=std,
        stem=surgery,
        registered_by=None if module.split(".")[0] == "timm" else module,
        pretrained=(cfg.get("tag") or True) if pretrained else False,
    )


def _create(name: str, num_classes: int, kwargs: Mapping[str, Any], pretrained: bool = False) -> nn.Module:
    if not is_model(name.split(".")[0]):
        raise unknown("model", name, timm.list_models(), hint="is the plugin that registers it installed?")
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)


def _try_kwargs(name: str, num_classes: int, kwargs: Mapping[str, Any]) -> None:
    """Turn what timm raises on a wrong argument into a sentence; the meta device makes the try cheap."""
    if not kwargs:
        return
    try:
        stems.on_meta(lambda: _create(name, num_classes, kwargs))
    except (TypeError, ValueError, KeyError, AssertionError, AttributeError, RuntimeError) as error:
        named = [key for key in kwargs if f"'{key}'" in str(error)] or list(kwargs)
        what = f"argument {named[0]}={kwargs[named[0]]!r}" if len(named) == 1 else f"one of {', '.join(named)}"
        raise UserError(
            f"model {name!r} does not take {what} ({_reason(error)}): leave it out of model_kwargs, or mend its value"
        ) from error


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
        reason = _reason(error)
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


def _reason(error: Exception) -> str:
    """The first sentence of what another library said."""
    return " ".join(str(error).split()).split(". ")[0][:160] or type(error).__name__


def _has_weights(name: str) -> bool:
    cfg = timm.get_pretrained_cfg(name)
    return cfg is not None and any(getattr(cfg, key, None) for key in ("url", "file", "hf_hub_id", "state_dict"))


def _per_channel(values: Sequence[float], in_chans: int, what: str) -> list[float]:
    """One value per channel from one or from as many."""
    given = [float(v) for v in values]
    if len(given) not in (1, in_chans):
        raise UserError(f"{what} has {len(given)} values: expected 1 or {in_chans}, one per channel")
    if "std" in what and min(given) <= 0:
        raise UserError(f"{what} {given}: expected values above 0")
    return given * in_chans if len(given) == 1 else given


def _fold(values: Sequence[float], in_chans: int) -> list[float]:
    """The weights' normalisation for another number of channels: their average, as timm folds the first kernel."""
    given = [float(v) for v in values]
    return given if len(given) == in_chans else [sum(given) / len(given)] * in_chans


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
