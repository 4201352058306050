"""Command line: parses arguments, calls `timm_robust.api`, prints. Torch is loaded only by commands that need it.

Importing a module registers its commands, in the order of `--help`.
"""

from timm_robust.cli.app import app, main

from timm_robust.cli import train, compare, distill, evaluate, analyze as measure, submit, zoo, lists  # isort: skip

__all__ = [
    "app",
    "compare",
    "distill",
    "evaluate",
    "lists",
    "main",
    "measure",
    "submit",
    "train",
    "zoo",
]
