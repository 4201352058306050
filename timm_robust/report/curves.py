"""Plot of robust accuracy over the epochs, one line per method. matplotlib is imported when one is drawn."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.runs.history import events

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#333333", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, safe for colour-blind readers, without the yellow that is faint on white."""

DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)))
"""Line styles, by which lines differ when colours repeat."""

INK, GREY, GRID = "#222222", "#666666", "#E4E4E4"
LABEL_INCHES = 0.18
"""Distance between two labels."""

MARK: dict[str, Any] = {
    "marker": "X", "markersize": 8.5, "markeredgecolor": "white", "markeredgewidth": 1, "linestyle": "", "zorder": 5,
    "clip_on": False,
}  # fmt: skip

STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "text.parse_math": False,
    "svg.fonttype": "none", "svg.hashsalt": "0",
}  # fmt: skip
"""Style of every picture, whatever the user's matplotlibrc says; text stays text in SVG, and $ starts no formula."""

Histories = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]


def draw(histories: Histories, files: Sequence[Path], *, title: str, notes: Sequence[str] = ()) -> None:
    """Draws `val_robust` of each method: mean over seeds, a band from the lowest to the highest, and collapses marked.

    Args:
        histories: rows of metrics.jsonl for each seed, by method; at least one method, and one row for each seed.
        files: pictures to write; the suffix is the format (png, svg, pdf).
        title: bold title.
        notes: lines below the title.

    Raises:
        OSError: a file cannot be written.
    """
    from matplotlib import rc_context  # takes a second to load
    from matplotlib.figure import Figure

    # inches: room above for the words, on the right for the names
    above, below, left = 0.6 + 0.19 * len(notes), 0.5, 0.62
    right = 0.62 + 0.072 * (max(map(len, histories)) + 8)
    across, high = 6.1, max(3.2, 0.34 * len(histories))
    width, height = left + across + right, above + high + below
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
        axes = figure.add_axes((left / width, below / height, across / width, high / height))
        figure.text(0.1 / width, 1 - 0.12 / height, title, weight="bold", size=12.5, color=INK, va="top")
        for number, note in enumerate(notes):
            figure.text(0.1 / width, 1 - (0.4 + 0.19 * number) / height, note, size=9, color=GREY, va="top")
        ends = {method: _line(axes, number, runs) for number, (method, runs) in enumerate(histories.items())}
        frame(axes, max(epoch for epoch, _, _ in ends.values()))
        name_lines(axes, ends, across, high)
        if any(first_collapse(run) for runs in histories.values() for run in runs):
            several = max(map(len, histories.values())) > 1
            label = "catastrophic overfitting" + ("; thin: that seed alone" if several else "")
            x, y = 0.75 / across, -0.31 / high
            axes.plot([x], [y], transform=axes.transAxes, color=GREY, **MARK)
            axes.text(x + 0.12 / across, y, label, transform=axes.transAxes, size=9, color=GREY, va="center")
        for file in files:
            figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else {})


def _line(axes: Axes, number: int, runs: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[int, float, Any]:
    """Draws a method; returns its last epoch, its value there, and the line's style."""
    style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}
    epochs, means, lows, highs = curve(runs)
    dots = "o" if len(epochs) <= 2 else ""
    axes.plot(epochs, means, linewidth=1.9, zorder=3, clip_on=False, marker=dots, markersize=4.5, **style)
    if len(runs) > 1:
        axes.fill_between(epochs, lows, highs, color=style["color"], alpha=0.12, linewidth=0, zorder=2)
    for run in runs:
        collapse = first_collapse(run)
        if collapse is None:
            continue
        rows = {row["epoch"]: row["val_robust"] for row in run}
        if len(runs) > 1:  # if one seed collapses and others do not, their mean shows neither
            axes.plot(list(rows), list(rows.values()), linewidth=0.8, zorder=2.5, clip_on=False, **style)
        place = min(collapse, max(rows))  # a run that stopped kept no row of that epoch
        axes.plot([place], [rows[place]], color=style["color"], **MARK)
    return epochs[-1], means[-1], style


def curve(runs: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Epochs, and at each the mean, lowest and highest `val_robust` of the runs that reached it."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for row in run:
            found.setdefault(row["epoch"], []).append(row["val_robust"])
    epochs = sorted(found)
    values = [found[epoch] for epoch in epochs]
    return epochs, [*map(statistics.fmean, values)], [*map(min, values)], [*map(max, values)]


def first_collapse(run: Sequence[Mapping[str, Any]]) -> int | None:
    """Epoch of the first collapse in a run; None if there is none."""
    return next((event["epoch"] for event in events(run)), None)


def frame(axes: Axes, last: int, *, shares: bool = True) -> None:
    """Sets limits, ticks and grid, after all lines are drawn.

    Args:
        last: epoch at the right edge.
        shares: whether the values are fractions, shown in percent.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter  # as above

    axes.set_xlim(1 - max(0.02 * (last - 1), 0.02), last if last > 1 else 1.02)
    axes.set_ylim(0, max(0.1, 1.04 * axes.dataLim.ymax))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))  # whole percents
    if shares:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("epoch", color=GREY, loc="left")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=GREY)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)


def name_lines(
    axes: Axes, ends: Mapping[str, tuple[int, float, Any]], across: float, high: float, form: str = "{:.1%}"
) -> None:
    """Labels each line at its right end; labels that would overlap move apart, and a thin line leads to each.

    Args:
        ends: last epoch, value there and style of each line, by name.
        across, high: size of the axes in inches.
        form: format of the value behind the name.
    """
    heights = {method: axes.transLimits.transform((epoch, value)) for method, (epoch, value, _) in ends.items()}
    order = sorted(heights, key=lambda method: float(heights[method][1]))
    places = spread_out([float(heights[method][1]) for method in order], LABEL_INCHES / high, 1.0)
    for method, place in zip(order, places, strict=True):
        (x, y), (_, value, style) = heights[method], ends[method]
        thin = {"linewidth": 0.8, "alpha": 0.6, "color": style["color"]}
        stub, text = 1 + 0.22 / across, 1 + 0.55 / across
        axes.plot(
            [x + 0.05 / across, stub - 0.03 / across], [y, place], transform=axes.transAxes, clip_on=False, **thin
        )
        axes.plot(
            [stub, text - 0.07 / across], [place] * 2, transform=axes.transAxes, linewidth=1.9, clip_on=False, **style
        )
        axes.text(
            text, place, f"{method}  {form.format(value)}", transform=axes.transAxes, va="center", size=9, color=INK
        )


def spread_out(wanted: Sequence[float], gap: float, high: float) -> list[float]:
    """Positions at least `gap` apart, within [0, high] if they fit, moved as little as possible from those wanted.

    Args:
        wanted: positions, in ascending order.
        gap: smallest distance.
        high: upper limit.
    """
    blocks: list[tuple[float, int]] = []  # sum and count of neighbours that touch, each measured from its own slot
    for number, place in enumerate(wanted):
        block = (place - number * gap, 1)
        while blocks and blocks[-1][0] / blocks[-1][1] > block[0] / block[1]:
            total, count = blocks.pop()
            block = (total + block[0], count + block[1])
        blocks.append(block)
    room = max(0.0, high - (len(wanted) - 1) * gap)
    slots = [total / count for total, count in blocks for _ in range(count)]
    return [min(max(slot, 0.0), room) + number * gap for number, slot in enumerate(slots)]
