"""Panels of a run's curves, as one picture for a page: what it learns, and what it memorises."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

from timm_robust.report.curves import COLOURS, DASHES, GREY, INK, LABEL_INCHES, MARK, STYLE, frame, name_lines
from timm_robust.runs.history import CATASTROPHIC_OVERFITTING, ROBUST_OVERFITTING, best_row, events

Curve = Sequence[tuple[int, float]]

MARKERS = {CATASTROPHIC_OVERFITTING: "X", ROBUST_OVERFITTING: "D"}

COLOUR_OF = {"validation": COLOURS[0], "training": COLOURS[1], "test": COLOURS[2]}

COLUMNS, ACROSS, HIGH = 2, 3.3, 2.1
"""Panels per row, and least width and height of the axes of each, in inches."""

ABOVE, BELOW, LEFT = 0.55, 0.5, 0.55


@dataclass(frozen=True)
class Panel:
    """One diagram over the epochs.

    Attributes:
        title: bold title.
        lines: (epoch, value) pairs of each line by its name, at least one each.
        shares: whether the values are fractions, shown in percent.
        best: epoch of best/, marked by a vertical line; None for no mark.
        marks: kind, epoch and value of each event.
    """

    title: str
    lines: Mapping[str, Curve]
    shares: bool = True
    best: int | None = None
    marks: Sequence[tuple[str, int, float]] = field(default_factory=tuple)


def curve(rows: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """Values of `key` by epoch, from the check on validation images or from the diagnosis, if there was one."""
    found = [(row["epoch"], (row if key.startswith("val_") else row.get("diagnosis", {})).get(key)) for row in rows]
    return [(epoch, value) for epoch, value in found if value is not None]


def panels_of(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Panels of a run: robust accuracy always, the others if the recipe's `diagnose` measured them."""
    best = best_row(rows)
    at = best["epoch"] if best else None

    def panel(title: str, keys: Mapping[str, str], *, shares: bool = True) -> Panel:
        return Panel(title, {name: found for name, key in keys.items() if (found := curve(rows, key))}, shares, at)

    first = panel("Robust accuracy", {"training": "train_robust", "validation": "val_robust", "test": "test_robust"})
    groups = {"wrong at best": "g_wrong", "right at best": "g_right", "wrong label": "noisy_g"}
    found = [
        replace(first, marks=marks(rows)),
        panel("Gradient norm of memorisation, |p − q|", groups, shares=False),
        panel("Share of the samples wrong at best", {"of the gradient": "g_wrong_share", "of all samples": "wrong"}),
        panel(
            "Wrong labels under attack: the network says",
            {"the given one": "noisy_given", "the true one": "noisy_true"},
        ),
        panel("Entropy of the labels, nats", {"entropy": "label_entropy"}, shares=False),
        panel("Labels whose likeliest class changed", {"changed": "relabelled"}),
        panel("Calibration error under attack", {"training": "train_ece", "test": "test_ece"}),
        panel("Norm of the parameters' gradient", {"norm": "gradient_norm"}, shares=False),
    ]
    refined = any(value for _, value in curve(rows, "label_entropy"))
    return [one for one in found if one.lines and (refined or not one.lines.keys() & {"entropy", "changed"})]


def marks(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, float]]:
    """Events of overfitting: kind, epoch, and validation robust accuracy after it."""
    heights = dict(curve(rows, "val_robust"))
    places = [(kind, min(event["epoch"], rows[-1]["epoch"])) for kind in MARKERS for event in events(rows, kind)]
    return [(kind, place, heights[place]) for kind, place in places]  # an epoch that collapsed may have no row


def svg(panels: Sequence[Panel], prefix: str, alt: str) -> str:
    """The panels as a self-contained `<svg>` element for a page.

    Args:
        panels: panels to draw, at least one.
        prefix: prefix of its ids, unique on the page.
        alt: alt text.
    """
    file = io.StringIO()
    draw_panels(panels, file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text[text.index("<svg") :])
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)  # which HTML does not need
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")  # Verdana's letters are as wide
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)


def draw_panels(panels: Sequence[Panel], file: Any, *, format: str = "svg", **settings: Any) -> None:
    """Draws panels in rows of two.

    Args:
        panels: panels to draw, at least one.
        file: path or file object, as matplotlib takes it.
        format: svg, png or pdf.
        settings: further arguments of matplotlib's `savefig`.
    """
    from matplotlib import rc_context  # takes a second to load
    from matplotlib.figure import Figure

    right = 0.62 + 0.072 * (max(len(name) for panel in panels for name in panel.lines) + 8)
    columns = min(COLUMNS, len(panels))
    high = max(HIGH, 1.1 * LABEL_INCHES * max(len(panel.lines) for panel in panels))
    wide, tall = LEFT + ACROSS + right, ABOVE + high + BELOW
    width, height = columns * wide, math.ceil(len(panels) / columns) * tall
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
        for number, panel in enumerate(panels):
            row, column = divmod(number, columns)
            corner = (column * wide + LEFT) / width, 1 - (row * tall + ABOVE + high) / height
            _draw(figure.add_axes((*corner, ACROSS / width, high / height)), panel, high)
        figure.savefig(file, format=format, **settings)


def _draw(axes: Any, panel: Panel, high: float) -> None:
    ends: dict[str, tuple[int, float, Any]] = {}
    for number, (name, points) in enumerate(panel.lines.items()):
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        style = {"color": COLOUR_OF.get(name, COLOURS[number % len(COLOURS)]), "linestyle": dash}
        epochs, values = zip(*points, strict=True)
        dots = "o" if len(epochs) <= 2 else ""
        axes.plot(epochs, values, linewidth=1.9, zorder=3, clip_on=False, marker=dots, markersize=4.5, **style)
        ends[name] = epochs[-1], values[-1], style
    frame(axes, max(epoch for epoch, _, _ in ends.values()), shares=panel.shares)
    axes.set_title(panel.title, loc="left", size=10.5, weight="bold", color=INK, pad=20)
    if panel.best is not None:
        axes.axvline(panel.best, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        axes.annotate(
            "best", (panel.best, 1), (0, 3), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
            size=8.5, color=GREY, ha="center",
        )  # fmt: skip
    for kind, epoch, value in panel.marks:
        axes.plot([epoch], [value], color=INK, **{**MARK, "marker": MARKERS[kind]})
    name_lines(axes, ends, ACROSS, high, "{:.1%}" if panel.shares else "{:.2f}")
