"""Plot of accuracy over the radius, one line per checkpoint. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.report.curves import COLOURS, DASHES, GREY, INK, STYLE, frame, name_lines

if TYPE_CHECKING:
    from timm_robust.evaluation.curve import Curve


def draw_radii(curves: Mapping[str, Curve], files: Sequence[Path], *, title: str, trained: float | None = None) -> None:
    """Draws accuracy over the radius, with a band for its 95 % interval.

    Args:
        curves: curves by name, at least one, all under one norm.
        files: pictures to write; the suffix is the format (svg, png, pdf).
        title: bold title.
        trained: radius to mark, in units of [0, 1]; None for no mark.

    Raises:
        OSError: a file cannot be written.
    """
    from matplotlib import rc_context  # takes a second to load
    from matplotlib.figure import Figure

    first = next(iter(curves.values()))
    scale, unit = (255, "radius eps in 1/255") if first.norm == "Linf" else (1, "radius eps")
    numbers = sorted({one.n_examples for one in curves.values()})
    note = f"{first.norm}, {first.attack}, n = {' or '.join(map(str, numbers))}; bands: 95 % intervals (Wilson)"
    above, below, left, across = 0.79, 0.5, 0.62, 5.2
    right, high = 0.62 + 0.072 * (max(map(len, curves)) + 18), max(3.0, 0.34 * len(curves))
    width, height = left + across + right, above + high + below
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
        axes = figure.add_axes((left / width, below / height, across / width, high / height))
        figure.text(0.1 / width, 1 - 0.12 / height, title, weight="bold", size=12.5, color=INK, va="top")
        figure.text(0.1 / width, 1 - 0.4 / height, note, size=9, color=GREY, va="top")
        ends: dict[str, tuple[Any, float, Any]] = {}
        for number, (name, curve) in enumerate(curves.items()):
            dash = DASHES[number // len(COLOURS) % len(DASHES)]
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": dash}
            places = [scale * eps for eps in curve.eps]
            lows, highs = zip(*curve.intervals(), strict=True)
            axes.plot(
                places, curve.accuracies, linewidth=1.9, zorder=3, clip_on=False, marker="o", markersize=3.5, **style
            )
            axes.fill_between(places, lows, highs, color=style["color"], alpha=0.12, linewidth=0, zorder=2)
            at = [f"{name}  {value:.1%} at {text}" for eps, text, value in points(curve) if eps == trained]
            ends[(at or [f"{name}  {curve.accuracies[-1]:.1%}"])[0]] = places[-1], curve.accuracies[-1], style
        last = max(place for place, _, _ in ends.values())
        frame(axes, max(1, round(last)))
        axes.set_xlim(-0.01 * (last or 1), last or 1)
        ticks = sorted({scale * eps for curve in curves.values() for eps in curve.eps})
        if len(ticks) <= 12:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlabel(unit, color=GREY, loc="left")
        if trained is not None and scale * trained <= last:
            axes.axvline(scale * trained, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
            axes.annotate(
                "trained", (scale * trained, 1), (0, 3), xycoords=axes.get_xaxis_transform(),
                textcoords="offset points", size=8.5, color=GREY, ha="center",
            )  # fmt: skip
        name_lines(axes, ends, across, high, "")
        for file in files:
            figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else {})


def points(curve: Curve) -> list[tuple[float, str, float]]:
    """Radius, its text and the accuracy there, in the order of the curve."""
    return list(zip(curve.eps, curve.eps_texts, curve.accuracies, strict=True))
