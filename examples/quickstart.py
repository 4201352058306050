"""The first three lines of the README, on a network small enough for a minute on a CPU.

    python examples/quickstart.py [--output runs/example]

Trains on scikit-learn's digits, prints clean, PGD-10 and AutoAttack accuracy on the test split, reads ten scans.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import timm_robust
from timm_robust.data import as_tensors, load_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder of the run; by default a free one in runs/")
    arguments = parser.parse_args()

    result = timm_robust.train(
        model="resnet18",
        method="sat",
        model_kwargs={"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
        output=arguments.output,
        autoattack_seconds=15,
    )
    print(result)

    model = timm_robust.load(result.output)  # images in [0, 1] -> logits, no plugin needed
    images, labels = as_tensors(load_data("digits").test, 10)
    with torch.no_grad():
        print("test scans of", *labels.tolist(), "are read as", *model(images).argmax(1).tolist())


if __name__ == "__main__":
    main()
