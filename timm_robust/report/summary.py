"""Results of a comparison, read from the folders of its runs: one row per method, as table, Markdown and JSON.

Numbers come from the files of each run, so that runs finished earlier and runs of today are treated alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from timm_robust.report.curves import draw
from timm_robust.runs.finished import FinishedRun
from timm_robust.runs.layout import COMPARISON_PICTURES
from timm_robust.utils.environment import hardware, versions

ANSWERED = {"stop": ", stopped", "restore": ", restored", "escalate": ", escalated"}
"""Suffix of a row about the recipe's answer to a collapse; none for a warning."""


WIDE = 200
"""Width in columns of text that is not wrapped."""


@dataclass(repr=False)
class Comparison:
    """The runs of a comparison; its `repr` is the table.

    Attributes:
        output: folder of the comparison, with one folder per run, comparison.md, comparison.json and the pictures.
        runs: runs, by method, then by seed.
        asked: arguments of the comparison, for comparison.json.
    """

    output: Path
    runs: list[FinishedRun]
    asked: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> list[FinishedRun]:
        """Runs that failed."""
        return [run for run in self.runs if run.error]

    @property
    def done(self) -> list[FinishedRun]:
        """Finished runs, which all numbers are from."""
        return [run for run in self.runs if run.done]

    def images(self) -> dict[str, int]:
        """Number of test images of each attack that all runs were measured on, counted from the first."""
        counts: dict[str, int] = {}
        for run in self.done:
            for name, entry in run.evaluation.get("attacks", {}).items():
                counts[name] = min(entry["n_examples"], counts.get(name, entry["n_examples"]))
        return counts

    def rows(self) -> list[dict[str, Any]]:
        """One row per method: accuracies in [0, 1] over its finished seeds, cost, and events."""
        images = self.images()
        return [
            _row([run for run in self.runs if run.method == method], images)
            for method in dict.fromkeys(run.method for run in self.runs)
        ]

    def title(self) -> str:
        """Title of the comparison, in one line."""
        seeds = sorted({run.seed for run in self.runs})
        title = f"{len(self.rows())} methods, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
        return title + (f": {setting}" if (setting := self.setting()) else "")

    def setting(self) -> str:
        """Model, data, threat and budget, from the first finished run; empty if there is none."""
        if not self.done:
            return ""
        manifest = self.done[0].manifest
        model, threat, epochs = manifest["model"], manifest["threat"], manifest["recipe"]["epochs"]
        name = model.get("architecture") or model.get("module_class")
        return (
            f"{name} on {manifest['data']['name']}, {threat['norm']} {threat['eps_text']}, "
            f"{epochs} epoch{'s' if epochs > 1 else ''}"
        )

    def legend(self) -> list[str]:
        """Meaning of the columns, in lines."""
        if not self.done:
            return []
        first, images = self.done[0], self.images()
        lines = []
        if first.evaluation:
            n = first.evaluation["n_examples"]
            fewer = "".join(f", {name} on the first {count}" for name, count in images.items() if count < n)
            lines.append(f"best checkpoints on {n} test images{fewer}; in %" + self._mean_of())
        check = self._check_attack()
        lines.append(f"last: validation images after the last epoch, {check}, in %" + self._mean_of(not lines))
        lines.append("passes: forward-backward passes per training image and epoch; s/epoch: median")
        return lines

    def _check_attack(self) -> str:
        return str(self.done[0].manifest["recipe"]["check_attack"])

    def _mean_of(self, first: bool = True) -> str:
        most = max(len(row["seeds"]) for row in self.rows())
        return f", mean ±standard deviation over {most} seeds" if most > 1 and first else ""

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table, as text."""
        rows, attacks = self.rows(), list(self.images())
        header = ["method", *(["clean"] if any(row["clean"] for row in rows) else []), *attacks]
        header += ["last", "s/epoch", "passes", "best epoch", "what happened"]
        out = []
        for row in rows:
            clean = [_percent(row["clean"])] if "clean" in header else []
            measured = [_percent(row["attacks"].get(name)) for name in attacks]
            cost = [_number(row["seconds_per_epoch"]), _number(row["passes"]), _between(row["best_epochs"])]
            out.append([row["method"], *clean, *measured, _percent(row["last"]), *cost, row["happened"]])
        return header, out

    def show(self, console: Console) -> None:
        """Prints table and legend; on a narrow console, events are printed below the table."""
        header, rows = self.cells()
        free = console.options.update(width=WIDE)
        narrow = console.measure(self._table(header, rows), options=free).maximum > console.width
        console.print(self._table(header[:-1], [cells[:-1] for cells in rows]) if narrow else self._table(header, rows))
        happened = [f"{cells[0]}: {cells[-1]}" for cells in rows if narrow and cells[-1]]
        for line in [*happened, *self.legend(), *self.failures()]:
            console.print(line, markup=False, soft_wrap=True)

    def _table(self, header: list[str], rows: list[list[str]]) -> Table:
        table = Table(
            title=self.title(), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
        )
        for name in header:
            words = name in ("method", "what happened")
            name = name.replace("best ", "best\n")
            table.add_column(name, justify="left" if words else "right", no_wrap=name == "method", overflow="fold")
        for cells in rows:
            table.add_row(*cells)
        return table

    def failures(self) -> list[str]:
        """One sentence for each failed run."""
        return [f"{run.method}, seed {run.seed} failed: {run.error}" for run in self.failed]

    def markdown(self) -> str:
        """Content of comparison.md."""
        header, rows = self.cells()
        lines = [header, ["---" if name in ("method", "what happened") else "---:" for name in header], *rows]
        table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        picture = [f"![robust accuracy over the epochs]({COMPARISON_PICTURES[0]})"] if self.done else []
        blocks = [f"# {self.title()}", "\n".join(table), *self.legend(), *self.failures(), *picture]
        return "\n\n".join(blocks) + "\n"

    def draw(self, files: Sequence[Path]) -> None:
        """Draws robust accuracy over the epochs; nothing if no run has finished.

        Args:
            files: pictures to write; the suffix is the format (png, svg, pdf).

        Raises:
            OSError: a file cannot be written.
        """
        histories: dict[str, list[Any]] = {}
        for run in self.done:
            histories.setdefault(run.method, []).append(run.history)
        if histories:
            most = max(map(len, histories.values()))
            seeds = f"mean of {most} seeds, band from the lowest to the highest" if most > 1 else "one seed"
            notes = [self.setting(), f"validation images under {self._check_attack()}; {seeds}"]
            draw(histories, files, title="Robust accuracy over the epochs", notes=notes)

    def to_dict(self) -> dict[str, Any]:
        """Content of comparison.json; resuming reads `asked`."""
        return {
            "format": 1,
            "asked": self.asked,
            "title": self.title(),
            "images": self.images(),
            "methods": self.rows(),
            "runs": [run.to_dict() for run in self.runs],
            "versions": versions(),
            "hardware": hardware(),
        }

    def __repr__(self) -> str:
        console = Console(width=WIDE, color_system=None, highlight=False)
        with console.capture() as captured:
            self.show(console)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _row(runs: list[FinishedRun], images: dict[str, int]) -> dict[str, Any]:
    done = [run for run in runs if run.done]
    measured = [run.evaluation for run in done if run.evaluation]
    history = [row for run in done for row in run.history]
    attacks = {
        # results are in data order: the first n of them are for the same images in every run
        name: _spread(statistics.fmean(entry["attacks"][name]["robust"][:n]) for entry in have)
        for name, n in images.items()
        if (have := [entry for entry in measured if name in entry["attacks"]])
    }
    counted = [row["passes"] for row in history if "passes" in row]  # not counted in compiled runs
    return {
        "method": runs[0].method,
        "method_args": done[0].manifest["method_args"] if done else {},
        "modifiers": done[0].manifest.get("modifiers", {}) if done else {},
        "seeds": [run.seed for run in done],
        "clean": _spread(entry["clean_accuracy"] for entry in measured),
        "attacks": attacks,
        "last": _spread(run.history[-1]["val_robust"] for run in done),
        "seconds_per_epoch": statistics.median(row["seconds"] for row in history) if history else None,
        "passes": statistics.fmean(counted) if counted else None,
        "best_epochs": [run.best_epoch for run in done],
        "happened": "; ".join(_happened(runs)),
    }


def _happened(runs: list[FinishedRun]) -> Iterable[str]:
    several = len(runs) > 1
    first = [run.events[0] for run in runs if run.done and run.events]
    if first:
        epochs = _between([event["epoch"] for event in first])
        answer = ANSWERED.get(first[0]["answer"], "")
        share = f" ({len(first)} of {sum(run.done for run in runs)} seeds)" if several else ""
        yield f"collapsed in {'epochs' if '-' in epochs else 'epoch'} {epochs}{answer}{share}"
    ended = [run.fallen[0]["epoch"] for run in runs if run.done and run.fallen]
    if ended:
        share = f" ({len(ended)} of {sum(run.done for run in runs)} seeds)" if several else ""
        yield f"robust overfitting, stopped after epoch {_between(ended)}{share}"
    for state, count in (
        ("failed", sum(bool(run.error) for run in runs)),
        ("not finished", sum(not run.done and not run.error for run in runs)),
    ):
        if count:
            yield state + (f" ({count} of {len(runs)} seeds)" if several else "")


def _spread(values: Iterable[float]) -> dict[str, Any] | None:
    """Mean and sample standard deviation; None for no values, no deviation for a single one."""
    numbers = [float(value) for value in values]
    if not numbers:
        return None
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "sd": deviation, "values": numbers}


def _percent(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{100 * found['mean']:.1f}" + ("" if found["sd"] is None else f" ±{100 * found['sd']:.1f}")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _between(values: Sequence[int]) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"
