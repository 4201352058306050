"""Intermediate features of an unmodified timm network.

The vector of an image is the input of the classifier. Two maps of places come from intermediate layers that timm names
in `feature_info`: the deepest with at least 5 places per side, and the deepest before it with at least 7; those of a
transformer are its grids of patch tokens. A network without such a layer has its vector only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.errors import UserError
from timm_robust.models.pixel_model import PixelModel

SIDES = (5, 7)
"""Sides of the two maps in places, the coarser first, as in AMDIM."""


@dataclass
class Seen:
    """Recorded features of one forward pass.

    Attributes:
        inputs: input of each classifier (a distilled network has two).
        layers: outputs of the requested layers, by name.
    """

    inputs: list[Tensor] = field(default_factory=list)
    layers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def vector(self) -> Tensor:
        """The classifiers' inputs, concatenated, [B, d]."""
        return torch.cat([_as_vector(value) for value in self.inputs], dim=1)


@contextmanager
def recorded(model: PixelModel, layers: Sequence[str] = ()) -> Iterator[Seen]:
    """Records a forward pass inside the context, also through wrappers of `model`.

    The classifier gets a detached copy: it is trained on the features without changing them.
    """
    seen = Seen()

    def detach(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.inputs.append(arguments[0])
        return (arguments[0].detach(), *arguments[1:])

    def keep(name: str) -> object:
        def hook(module: nn.Module, arguments: object, output: Tensor) -> None:
            seen.layers[name] = output

        return hook

    hooks = [head.register_forward_pre_hook(detach) for head in _classifiers(model)]
    hooks += [model.model.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Layer:
    """Feature map: name of its layer, channels, and the side that it is pooled to."""

    name: str
    channels: int
    side: int


@dataclass(frozen=True)
class Layout:
    """Locations of a network's features.

    Attributes:
        width: dimension d of the vector.
        maps: feature maps, the coarser first; may be empty.
    """

    width: int
    maps: tuple[Layer, ...]

    def pooled(self, seen: Seen) -> list[Tensor]:
        """The maps, each [B, C, side, side]; without maps the vector as a map of one place."""
        if not self.maps:
            return [seen.vector[:, :, None, None]]
        return [
            F.adaptive_avg_pool2d(_as_map(seen.layers[layer.name], layer.channels), layer.side) for layer in self.maps
        ]


def find_layout(model: PixelModel) -> Layout:
    """Finds the features of a network with one forward pass.

    Raises:
        UserError: no classifier found.
    """
    record, device = model.config, next(model.parameters()).device
    named = {item["module"]: item["num_chs"] for item in _feature_info(model.model)}
    there = {name for name, _ in model.model.named_modules()}
    named = {name: channels for name, channels in named.items() if name in there}
    images = torch.zeros(1, record.in_chans, record.image_size, record.image_size, device=device)
    with torch.no_grad(), attack_mode(model), recorded(model, list(named)) as seen:
        model(images)
    if not seen.inputs:
        raise UserError(f"the features of {record.architecture or record.module_class} cannot be read")
    maps = {name: _as_map(seen.layers.get(name), channels) for name, channels in named.items()}
    sides = [(name, min(found.shape[2:])) for name, found in maps.items() if found is not None]

    def deepest(low: int, layers: list[tuple[str, int]]) -> int | None:
        return max((i for i, (_, side) in enumerate(layers) if side >= low), default=None)

    coarse = deepest(SIDES[0], sides)
    if coarse is None:
        return Layout(seen.vector.shape[1], ())
    fine = deepest(SIDES[1], sides[:coarse])
    chosen = (sides[coarse][0], sides[coarse if fine is None else fine][0])
    layers = (Layer(name, named[name], side) for name, side in zip(chosen, SIDES, strict=True))
    return Layout(seen.vector.shape[1], tuple(layers))


class Projections(nn.Module):
    """Projections of the maps to the width of the vector: a 1x1 convolution and BatchNorm each.

    Args:
        layout: layout of the network.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        channels = [layer.channels for layer in layout.maps] or [layout.width]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, layout.width, 1, bias=False), nn.BatchNorm2d(layout.width))
            for count in channels
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C, side, side] -> [B, d, places]."""
        return [head(found).flatten(2) for head, found in zip(self.heads, maps, strict=True)]


class Encoder(nn.Module):
    """Encoder for k-NN: images in [0, 1] -> features, float32 [N, d].

    Args:
        network: network whose classifier's input is the feature.
        normalise: scale features to length 1, so that the nearest has the largest cosine.
    """

    def __init__(self, network: PixelModel, *, normalise: bool = True) -> None:
        super().__init__()
        self.network, self.normalise = network, normalise

    def forward(self, images: Tensor) -> Tensor:
        with recorded(self.network) as seen:
            self.network(images)
        vector = seen.vector.float()
        return F.normalize(vector, dim=1) if self.normalise else vector


def _classifiers(model: PixelModel) -> list[nn.Module]:
    find = getattr(model.model, "get_classifier", None)
    if find is None:
        raise UserError(f"{type(model.model).__name__} has no get_classifier(): features are read from timm networks")
    found = find()
    return list(found) if isinstance(found, (tuple, list, nn.ModuleList)) else [found]


def _feature_info(network: nn.Module) -> list[dict]:
    info = getattr(network, "feature_info", [])
    return [item for item in getattr(info, "info", info) if "module" in item and "num_chs" in item]


def _as_vector(value: Tensor) -> Tensor:
    """A classifier's input as [B, d], averaged over places if it has any."""
    return value.mean((2, 3)) if value.ndim == 4 else value.mean(1) if value.ndim == 3 else value


def _as_map(value: object, channels: int) -> Tensor | None:
    """A layer's output as [B, C, H, W], from either order of axes or from tokens; None for anything else."""
    if not isinstance(value, Tensor):
        return None
    if value.ndim == 3 and value.shape[2] == channels:
        side = math.isqrt(value.shape[1])
        grid = value[:, value.shape[1] - side**2 :]  # class tokens precede the patches
        return grid.transpose(1, 2).unflatten(2, (side, side))
    if value.ndim == 4 and channels in (value.shape[1], value.shape[3]):
        return value if value.shape[1] == channels else value.permute(0, 3, 1, 2)
    return None
