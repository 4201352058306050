"""HTML report on runs: how far each fell from its best epoch, and what it memorised. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from timm_robust.errors import UserError
from timm_robust.report.panels import Panel, curve, marks, panels_of, svg
from timm_robust.runs.finished import FinishedRun
from timm_robust.runs.history import best_and_last, best_row, overfitting_line, points
from timm_robust.runs.layout import MANIFEST, METRICS

SPLITS = ("training", "validation", "test")

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Robust overfitting</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th { color: #666; font-weight: 600; } th[colspan] { text-align: center; }
.text { text-align: left; }
svg { max-width: 100%; height: auto; }
p.small { color: #666; font-size: 13px; }
</style>
</head>
<body>
"""

LEGEND = (
    "Robust accuracy in %: at the epoch in best/, which was selected on validation images, and after the last one. "
    "Nothing was selected on test images. Training images have the labels that were trained on."
)

SIGNS = (
    "Dotted: the epoch in best/. ✕ catastrophic overfitting. ◆ robust overfitting ended the run. "
    "Right or wrong at best: training images that the best epoch so far classified correctly under attack, or not."
)


def write_page(runs: str | Path | Sequence[str | Path], path: Path) -> Path:
    """Writes the page; see `timm_robust.make_report`."""
    folders = [Path(runs)] if isinstance(runs, (str, Path)) else [Path(run) for run in runs]
    if not folders:
        raise UserError("there is nothing to report: pass at least one run's folder")
    found = [_read(folder) for folder in folders]
    if not path.resolve().parent.is_dir():
        raise UserError(f"the folder of the report {str(path)!r} does not exist: make it first")
    try:
        path.write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror or error}") from error
    return path


def _read(folder: Path) -> FinishedRun:
    if not folder.is_dir():
        raise UserError(f"run {str(folder)!r} does not exist: expected the folder of a training run")
    run = FinishedRun(folder.name, 0, folder)
    run.read(())
    if not (run.manifest and run.history and all({"epoch", "val_robust"} <= row.keys() for row in run.history)):
        raise UserError(f"{folder} holds no run: {METRICS} or {MANIFEST} is missing, empty or damaged")
    return run


def page(runs: Sequence[FinishedRun]) -> str:
    """The page as text."""
    several = len({run.folder.name for run in runs}) < len(runs)
    names = [str(run.folder) if several else run.folder.resolve().name for run in runs]
    parts = [HEAD, "<h1>Robust overfitting</h1>", _table(dict(zip(names, runs, strict=True))), _small(LEGEND)]
    if len(runs) > 1:
        lines = {name: curve(run.history, "val_robust") for name, run in zip(names, runs, strict=True)}
        seen = [mark for run in runs for mark in marks(run.history)]
        panel = Panel("Robust accuracy on validation images", lines, marks=seen)
        parts += ["<h2>All runs</h2>", svg([panel], "all", "validation curves of all runs")]
    for number, (name, run) in enumerate(zip(names, runs, strict=True)):
        parts += [f"<h2>{escape(name)}</h2>", f"<p>{escape(overfitting_line(run.history))}</p>"]
        parts += [f"<p>{escape(line)}</p>" for line in _happened(run)]
        parts.append(svg(panels_of(run.history), f"run{number}", f"curves of {name}"))
        parts.append(_small(_measured(run)))
    return "\n".join([*parts, _small(SIGNS), "</body>\n</html>\n"])


def _small(text: str) -> str:
    return f'<p class="small">{escape(text)}</p>'


def _table(runs: dict[str, FinishedRun]) -> str:
    words, of = ("run", "method", "model", "data", "threat"), ("best", "last", "gap")
    top = "".join(f'<th rowspan="2" class="text">{word}</th>' for word in words)
    top += '<th rowspan="2">epochs</th><th rowspan="2">best epoch</th>'
    top += "".join(f'<th colspan="3">{split}</th>' for split in SPLITS)
    lines = [f"<tr>{top}</tr>", f"<tr>{''.join(f'<th>{word}</th>' for word in of * len(SPLITS))}</tr>"]
    for name, run in runs.items():
        text = "".join(f'<td class="text">{escape(word)}</td>' for word in (name, *_setting(run)))
        lines.append(f"<tr>{text}{''.join(f'<td>{number}</td>' for number in _numbers(run))}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _setting(run: FinishedRun) -> tuple[str, str, str, str]:
    """Method with its modifiers, model, data and threat, from the manifest."""
    manifest = run.manifest
    model, threat = manifest.get("model", {}), manifest.get("threat", {})
    return (
        " with ".join((str(manifest.get("method", "-")), *manifest.get("modifiers", {}))),
        str(model.get("architecture") or model.get("module_class") or "-"),
        str(manifest.get("data", {}).get("name", "-")),
        f"{threat.get('norm', '-')} {threat.get('eps_text', '')}".strip(),
    )


def _numbers(run: FinishedRun) -> list[str]:
    wanted = run.manifest.get("recipe", {}).get("epochs")
    done, best = run.history[-1]["epoch"], best_row(run.history)
    out = [str(done) if wanted in (None, done) else f"{done} of {wanted}", str(best["epoch"]) if best else "-"]
    both = best_and_last(run.history)
    for split in SPLITS:
        out += _percents(*both[split]) if split in both else ["-"] * 3
    return out


def _percents(high: float, low: float) -> list[str]:
    return [f"{100 * high:.1f}", f"{100 * low:.1f}", f"{round(100 * (high - low), 1) + 0.0:.1f}"]


def _happened(run: FinishedRun) -> list[str]:
    """Events of the run, one sentence each."""
    sentences = [
        f"catastrophic overfitting in epoch {event['epoch']}: robust accuracy on {event['seen_on']} images fell from "
        f"{event['best']:.1%} to {event['robust']:.1%}"
        for event in run.events
    ]
    return sentences + [
        f"robust overfitting: the run ended after epoch {event['epoch']}, {points(event['best'], event['robust'])} "
        f"below epoch {event['best_epoch']}"
        for event in run.fallen
    ]


def _measured(run: FinishedRun) -> str:
    recipe = run.manifest.get("recipe", {})
    text = f"Validation images under {recipe.get('check_attack', 'the attack of the check')}"
    if recipe.get("diagnose"):
        text += f"; up to {recipe['diagnose']} training and as many test images under pgd-10-1"
    if recipe.get("label_noise"):
        text += f"; {recipe['label_noise']:.0%} of the training labels redrawn at random"
    return text + "."
