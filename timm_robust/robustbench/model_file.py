"""Python file that lets `robustbench.load_model` find a trained network, written and tested.

RobustBench first asks timm for `ID_DATASET_THREAT` in lower case, so a file that registers that name is enough. The
network normalises in `forward` and keeps its keys, because RobustBench loads weights without a prefix.
"""

from __future__ import annotations

import importlib
import pprint
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.errors import UserError
from timm_robust.robustbench.record import Board, timm_name_for
from timm_robust.threat import SMALL_IMAGE
from timm_robust.utils.environment import versions
from timm_robust.utils.files import write_text

if TYPE_CHECKING:
    from torch import nn

    from timm_robust.models.pixel_model import ModelConfig, PixelModel

CROP_SHARE = 0.875
"""Share of the shorter side of an ImageNet image in the evaluation view; at 224 pixels, Res256Crop224."""

TEMPLATE = '''"""{model_id} for RobustBench's board {board}.

Architecture: {architecture}.

`import {module}` registers it with timm as
{timm_name}, and then, with RobustBench as it is released,

    robustbench.utils.load_model("{model_id}", dataset="{board.dataset}", threat_model="{board.threat}")

returns it, with its weights from {model_id}.pt beside this file.
For an entry of the zoo itself, `build` is the callable without arguments and that file the plain state dict.

{needs}
Written by timm-robust {version}.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

{imports}

WEIGHTS = Path(__file__).with_name("{model_id}.pt")
URL = ""  # of that file once it is released; used where it does not lie beside this one
MEAN = {mean}
STD = {std}
{record}

class {class_name}({base}):
    """Takes images in [0, 1], normalises them itself, returns logits. Keys are those of {base}."""

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward((images - self.pixel_mean) / self.pixel_std){pick}


def build() -> {class_name}:
    """The network with fresh weights, in eval mode."""
    network = {create}
    network.__class__ = {class_name}
    for name, values in (("pixel_mean", MEAN), ("pixel_std", STD)):
        # not in the state dict, which holds the inner network alone
        network.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
    view = {{
        "input_size": {size},
        "crop_pct": {crop},
        "interpolation": "bilinear",
        "mean": (0.0,) * {channels},  # pixels in [0, 1] are what it takes
        "std": (1.0,) * {channels},
    }}
    network.pretrained_cfg = {{**network.pretrained_cfg, **view}}
    network.default_cfg = network.pretrained_cfg  # where RobustBench looks for the preprocessing
    return network.eval()


@register_model
def {timm_name}(pretrained: bool = False, **_: Any) -> {class_name}:
    """What timm calls; its other arguments (number of classes, configuration) are fixed for these weights."""
    network = build()
    if pretrained:
        if WEIGHTS.is_file():
            weights = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
        elif URL:
            weights = torch.hub.load_state_dict_from_url(URL, map_location="cpu", weights_only=True)
        else:
            raise FileNotFoundError(f"{{WEIGHTS}} is not there: put it beside this file, or fill in URL")
        network.load_state_dict(weights)
    return network
'''


def module_name(model_id: str) -> str:
    """Name of the file without ending, a valid identifier."""
    return re.sub(r"\W", "_", model_id.lower())


def is_plain(record: ModelConfig) -> bool:
    """Whether `timm.create_model` alone builds this network: no small-image stem, no swapped activation, no plugin."""
    return not (record.stem or record.activation or record.registered_by)


def write_model_file(folder: Path, model: PixelModel, board: Board, model_id: str, architecture: str) -> Path:
    """Writes the file.

    Args:
        folder: folder of the submission, with `model_id.pt`.
        model: network to build.
        board: board whose data set and threat are part of the registered name.
        model_id: id on the board.
        architecture: description, for the module docstring.

    Raises:
        UserError: a network that no file can rebuild.
    """
    record = model.config
    base = type(model.model)
    if record.architecture is None or not _importable(base):
        name = record.module_class or f"{base.__module__}:{base.__qualname__}"
        raise UserError(
            f"the checkpoint's network is your own {name}, which RobustBench cannot make: train a timm model"
        )
    plain = is_plain(record)
    imports = ["import timm"] if plain else []
    imports += [
        "import torch",
        f"from {base.__module__} import {base.__name__}",
        "from timm.models import register_model",
    ]
    if not plain:
        imports.append("from timm_robust.models import ModelRecord, rebuild")
    kwargs = "".join(f", {name}={value!r}" for name, value in record.model_kwargs.items())
    create = f"timm.create_model({record.architecture!r}, num_classes={record.num_classes}{kwargs})"
    size = record.image_size
    path = folder / f"{module_name(model_id)}.py"
    text = TEMPLATE.format(
        model_id=model_id,
        architecture=architecture,
        board=board,
        module=module_name(model_id),
        timm_name=timm_name_for(model_id, board.dataset, board.threat),
        needs=_needs(record),
        version=versions().get("timm-robust", ""),
        imports="\n".join(sorted(imports, key=lambda line: (line.startswith("from"), line.split()[1].lower()))),
        mean=record.mean,
        std=record.std,
        record="" if plain else f"RECORD = {pprint.pformat(record.to_dict(), width=110, sort_dicts=False)}\n",
        class_name=re.sub(r"\W", "_", model_id),
        base=base.__name__,
        pick=_pick(model),
        create=create if plain else "rebuild(ModelRecord.from_dict(RECORD)).model",
        size=(record.in_chans, size, size),
        crop=CROP_SHARE if size > SMALL_IMAGE else 1.0,
        channels=record.in_chans,
    )
    write_text(path, text)
    return path


def build_from(path: Path, timm_name: str) -> nn.Module:
    """The network that a model file builds, with its weights; registers nothing with timm."""
    import timm.models  # loads torch

    registers = timm.models.register_model
    space: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    timm.models.register_model = lambda function: function
    try:
        exec(compile(path.read_text(), str(path), "exec", dont_inherit=True), space)
    finally:
        timm.models.register_model = registers
    return space[timm_name](pretrained=True)


def check_model_file(path: Path, model: PixelModel, timm_name: str) -> None:
    """Requires that the written file and weights give exactly the checkpoint's logits.

    Raises:
        UserError: they do not.
    """
    import torch  # loaded where it is used, as in all of this room

    record = model.config
    images = torch.rand(
        4, record.in_chans, record.image_size, record.image_size, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        expected = model(images)
        found = build_from(path, timm_name)(images)
    if not torch.equal(found, expected):
        gap = (found - expected).abs().max().item()
        raise UserError(
            f"{path} does not give the checkpoint's logits, they differ by {gap:g}: please report this network"
        )


def _needs(record: ModelConfig) -> str:
    if is_plain(record):
        return "It needs torch and timm alone.\n"
    reasons = [
        f"its activations were swapped ({record.activation})" if record.activation else "",
        "its first layers were fitted to small images" if record.stem else "",
        f"timm knows it from {record.registered_by}" if record.registered_by else "",
    ]
    listed = "".join(f"- {reason}\n" for reason in reasons if reason)
    return f"It needs timm-robust beside torch and timm, to rebuild the network from RECORD:\n\n{listed}"


def _pick(model: PixelModel) -> str:
    """Index of the logits among several outputs, such as those of auxiliary heads."""
    import torch  # as above

    record = model.config
    with torch.no_grad():
        output = model.model(torch.zeros(1, record.in_chans, record.image_size, record.image_size))
    return "[0]" if isinstance(output, (tuple, list)) else ""


def _importable(base: type) -> bool:
    try:
        return getattr(importlib.import_module(base.__module__), base.__name__, None) is base
    except ImportError:
        return False
