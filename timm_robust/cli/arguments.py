"""Options that several commands have, with what `--help` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from timm_robust.cli.parsing import Pairs

Model = Annotated[Optional[str], typer.Option(help="Any timm model name. [default: resnet18]")]
Data = Annotated[
    Optional[str],
    typer.Option(
        help="digits (embedded), a folder train/CLASS/* with val|test/CLASS/*, an .npz, or a timm name. "
        "[default: digits]"
    ),
]
Eps = Annotated[
    Optional[str],
    typer.Option(
        help="Radius as a share of the pixel range, such as 8/255. [default: 8/255 up to 64 pixels, 4/255 above]"
    ),
]
Norm = Annotated[Optional[str], typer.Option(help="Linf or L2. [default: Linf]")]
RecipeName = Annotated[Optional[str], typer.Option(help="Training settings by name; `timm-robust recipes` lists them.")]
Epochs = Annotated[Optional[int], typer.Option(help="Passes over the training set.")]
BatchSize = Annotated[Optional[int], typer.Option(help="Images per step and process.")]
Rate = Annotated[Optional[float], typer.Option(help="Largest learning rate.")]
Settings = Annotated[Pairs, typer.Option("--set", help="Any other recipe setting: --set ema=0.999 clip_grad=1")]
ModelKwargs = Annotated[
    Pairs,
    typer.Option(help="Arguments of timm.create_model: --model-kwargs layers=[1,1,1,1] channels=[16,32,64,128]"),
]
Pretrained = Annotated[Optional[bool], typer.Option("--pretrained", help="Start from timm's pretrained weights.")]
Stem = Annotated[
    Optional[str], typer.Option(help="auto keeps resolution up to 64 pixels, none leaves the model as is.")
]
ImageSize = Annotated[Optional[int], typer.Option(help="Side in pixels. [default: that of the data]")]
ExtraData = Annotated[
    Optional[str],
    typer.Option(
        help="More images to train on, such as generated ones: a folder CLASS/*, an .npz with image and label, or a "
        "timm name."
    ),
]
ExtraShare = Annotated[Optional[float], typer.Option(help="Their share of each batch. [default: 0.7]")]
DataDir = Annotated[Optional[str], typer.Option(help="Root folder of timm data sets.")]
Download = Annotated[Optional[bool], typer.Option("--download", help="Let timm data sets be fetched.")]
Precision = Annotated[Optional[str], typer.Option(help="fp32, bf16 or fp16. [default: fp32]")]
Device = Annotated[Optional[str], typer.Option(help="cpu stays off a GPU. [default: the best there is]")]
Workers = Annotated[Optional[int], typer.Option(help="Data-loading processes for large images.")]
TestAttack = Annotated[
    Pairs,
    typer.Option(
        help="What to measure at the end: clean, fgsm, pgd-K-R, autoattack; none for nothing. "
        "[default: clean pgd-10-1 autoattack]"
    ),
]
TestExamples = Annotated[
    Optional[int], typer.Option(help="Test images for that. [default: all; AutoAttack as many as fit 90 seconds]")
]
Examples = Annotated[Optional[int], typer.Option(help="Number of test images, the first ones. [default: all]")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Checkpoint = Annotated[Path, typer.Argument(help="Folder of a run (its best checkpoint) or of a checkpoint.")]
EvalData = Annotated[Optional[str], typer.Option(help="Dataset, as in train. [default: that of the training]")]
EvalBatchSize = Annotated[int, typer.Option(help="Images per forward pass.")]
Json = Annotated[Optional[Path], typer.Option("--json", help="Write the record to this file.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
