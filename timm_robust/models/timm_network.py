"""timm networks by name: created, fitted to the image size, with timm's errors turned into sentences."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import timm
from timm.models import build_model_with_cfg, is_model, model_entrypoint
from torch import nn

from timm_robust.errors import UserError, unknown
from timm_robust.models.pixel_model import ModelConfig
from timm_robust.models.resolution import on_meta
from timm_robust.models.stem import apply_stem
from timm_robust.models.stem_plan import make_plan
from timm_robust.threat import SMALL_IMAGE
from timm_robust.utils.random import preserve_rng_state

READS_FILES = re.compile(r"pretrained(?!_window)|checkpoint_|(?<!drop)(?:^|_)(?:cache|path|file|url|hub)(?:_|$)")
"""Parts of the names by which arguments of timm name a file or an address to read."""


def create(name: str, num_classes: int, kwargs: Mapping[str, Any], pretrained: bool = False) -> nn.Module:
    """timm's network, as it is.

    Raises:
        UserError: the name is not registered, or an argument that is not the network's own.
    """
    require_own_arguments(kwargs)
    if not is_model(name.split(".")[0]):
        raise unknown("model", name, timm.list_models(), hint="is the plugin that registers it installed?")
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)


def require_own_arguments(kwargs: Mapping[str, Any]) -> None:
    """Refuses arguments that `timm.create_model` and its builder take before the network sees any.

    They load weights from files and addresses, some of which timm unpickles: a checkpoint that names one would run code
    when it is loaded. Weights of a checkpoint are beside its model.json.

    Raises:
        UserError: names the argument.
    """
    host = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}
    for name in kwargs:
        if name in host - {"kwargs"} or READS_FILES.search(name):
            raise UserError(
                f"model argument {name!r} belongs to timm's loader and not to the network: leave it out of "
                "model_kwargs; a checkpoint must not name files to read"
            )


def create_fitted(
    name: str, config: ModelConfig, kwargs: dict[str, Any], pretrained: bool, stem: str
) -> tuple[nn.Module, ModelConfig]:
    """The network with its small-image stem, and the completed configuration.

    Args:
        name: registered timm name, with the tag of its weights or without.
        config: number of classes, channels and image size.
        kwargs: arguments for `timm.create_model`; completed in place.
        pretrained: load timm's weights.
        stem: `auto` or `none`.

    Raises:
        UserError: unknown name, weights or argument, or an image size that the model cannot take.
    """
    _check_request(name, kwargs, pretrained)
    if config.in_chans != 3:
        kwargs["in_chans"] = config.in_chans
    with preserve_rng_state():  # trials draw weights too, and the seed must not depend on their number
        _try_kwargs(name, config.num_classes, kwargs)
        plan = make_plan(
            lambda **extra: create(name, config.num_classes, {**kwargs, **extra}),
            name,
            image_size=config.image_size,
            in_chans=config.in_chans,
            small=stem == "auto" and config.image_size <= SMALL_IMAGE,
            taken=frozenset(kwargs),
        )
    kwargs |= plan.kwargs
    try:
        network = create(name, config.num_classes, kwargs, pretrained=pretrained)
    except Exception as error:
        if not pretrained:
            raise
        reason = first_sentence(error)
        raise UserError(
            f"pretrained weights of {name!r} could not be loaded ({type(error).__name__}: {reason}): check the network "
            f"or the cache, or train from scratch (pretrained=False)"
        ) from error
    surgery = {key: value for key, value in plan.surgery.items() if not (pretrained and key == "centre")}
    apply_stem(network, surgery)
    cfg = getattr(network, "pretrained_cfg", None) or {}
    mean, std = config.mean, config.std
    if pretrained:
        mean, std = (_fold(cfg[key], config.in_chans) for key in ("mean", "std"))
    module = model_entrypoint(name.split(".")[0]).__module__
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


def _check_request(name: str, kwargs: Mapping[str, Any], pretrained: bool) -> None:
    """Refuses names, weights and arguments that timm does not have or that a checkpoint could not hold."""
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
    require_own_arguments(kwargs)


def _try_kwargs(name: str, num_classes: int, kwargs: Mapping[str, Any]) -> None:
    """Turns timm's errors on a wrong argument into a sentence; the meta device makes the trial cheap."""
    if not kwargs:
        return
    try:
        on_meta(lambda: create(name, num_classes, kwargs))
    except (TypeError, ValueError, KeyError, AssertionError, AttributeError, RuntimeError) as error:
        named = [key for key in kwargs if f"'{key}'" in str(error)] or list(kwargs)
        what = f"argument {named[0]}={kwargs[named[0]]!r}" if len(named) == 1 else f"one of {', '.join(named)}"
        raise UserError(
            f"model {name!r} does not take {what} ({first_sentence(error)}): leave it out of model_kwargs, or correct "
            "its value"
        ) from error


def _has_weights(name: str) -> bool:
    cfg = timm.get_pretrained_cfg(name)
    return cfg is not None and any(getattr(cfg, key, None) for key in ("url", "file", "hf_hub_id", "state_dict"))


def _fold(values: Sequence[float], in_chans: int) -> list[float]:
    """Normalisation of the weights for another number of channels: the average, as timm folds the first kernel."""
    given = [float(v) for v in values]
    return given if len(given) == in_chans else [sum(given) / len(given)] * in_chans


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def first_sentence(error: Exception) -> str:
    """The first sentence of another library's error."""
    return " ".join(str(error).split()).split(". ")[0][:160] or type(error).__name__
