"""File names in the folder of a run and of a comparison, each defined once. Torch-free.

manifest.json       how to repeat the run
metrics.jsonl       one row per epoch
evaluation.json     accuracies of the best checkpoint on the test split
best/  last/        model.safetensors, model.json: checkpoints of the best and of the last epoch
last/               state.pt: what resuming needs beside them
"""

from __future__ import annotations

MANIFEST, METRICS, EVALUATION = "manifest.json", "metrics.jsonl", "evaluation.json"

BEST, LAST = "best", "last"

WEIGHTS, METADATA, STATE = "model.safetensors", "model.json", "state.pt"

COMPARISON, COMPARISON_PAGE = "comparison.json", "comparison.md"

COMPARISON_PICTURES = ("comparison.png", "comparison.svg")
