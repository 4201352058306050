"""Doe2026Draft for RobustBench's board cifar10 Linf 8/255.

Architecture: vit_tiny_patch16_224 (timm, embed_dim=16, depth=1, num_heads=2, img_size=32, patch_size=4, silu).

`import doe2026draft` registers it with timm as
doe2026draft_cifar10_linf, and then, with RobustBench as it is released,

    robustbench.utils.load_model("Doe2026Draft", dataset="cifar10", threat_model="Linf")

returns it, with its weights from Doe2026Draft.pt beside this file.
For an entry of the zoo itself, `build` is the callable without arguments and that file the plain state dict.

It needs timm-robust beside torch and timm, to make the network again from RECORD:

- its activations were swapped (silu)

Written by timm-robust 0.1.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from timm_robust.models import ModelRecord, rebuild

WEIGHTS = Path(__file__).with_name("Doe2026Draft.pt")
URL = ""  # of that file once it is released; used where it does not lie beside this one
MEAN = [0.2892164522058823, 0.2892164522058823, 0.2892164522058823]
STD = [0.3544783616366425, 0.3544783616366425, 0.3544783616366425]
RECORD = {'architecture': 'vit_tiny_patch16_224',
 'module_class': None,
 'model_kwargs': {'embed_dim': 16, 'depth': 1, 'num_heads': 2, 'img_size': 32, 'patch_size': 4},
 'num_classes': 10,
 'in_chans': 3,
 'image_size': 32,
 'mean': [0.2892164522058823, 0.2892164522058823, 0.2892164522058823],
 'std': [0.3544783616366425, 0.3544783616366425, 0.3544783616366425],
 'stem': {},
 'activation': 'silu',
 'registered_by': None,
 'pretrained': False}


class Doe2026Draft(VisionTransformer):
    """Takes images in [0, 1], normalises them itself, returns logits. Keys are those of VisionTransformer."""

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward((images - self.pixel_mean) / self.pixel_std)


def build() -> Doe2026Draft:
    """The network with fresh weights, in eval mode."""
    network = rebuild(ModelRecord.from_dict(RECORD)).model
    network.__class__ = Doe2026Draft
    for name, values in (("pixel_mean", MEAN), ("pixel_std", STD)):
        # not in the state dict, which holds the inner network alone
        network.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
    view = {
        "input_size": (3, 32, 32),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.0,) * 3,  # pixels in [0, 1] are what it takes
        "std": (1.0,) * 3,
    }
    network.pretrained_cfg = {**network.pretrained_cfg, **view}
    network.default_cfg = network.pretrained_cfg  # where RobustBench looks for the preprocessing
    return network.eval()


@register_model
def doe2026draft_cifar10_linf(pretrained: bool = False, **_: Any) -> Doe2026Draft:
    """What timm calls; its other arguments (number of classes, configuration) are fixed for these weights."""
    network = build()
    if pretrained:
        if WEIGHTS.is_file():
            weights = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
        elif URL:
            weights = torch.hub.load_state_dict_from_url(URL, map_location="cpu", weights_only=True)
        else:
            raise FileNotFoundError(f"{WEIGHTS} is not there: put it beside this file, or fill in URL")
        network.load_state_dict(weights)
    return network
