"""Census over timm: non-smooth operators left by the activation swap, and families that the small-image stem fits.

    python -m timm_robust_plugins.smooth.census --output plugins/smooth/census.md

For the smallest model of each timm module: build it, swap, count the non-smooth operators that a train-mode forward
still runs (on the meta device, without arithmetic), and plan the stem for 32 pixels. An exception does not stop it, but
becomes that model's line in the table.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any

import timm
import torch
from torch import nn

from timm_robust.errors import UserError
from timm_robust.models.activations import swap_activations
from timm_robust.models.nonsmooth import trace_nonsmooth
from timm_robust.models.resolution import on_meta
from timm_robust.models.stem_plan import make_plan

SECONDS_PER_MODEL = 60
CPU_LIMIT = 30_000_000
"""Maximum number of parameters of models that are traced with real arithmetic, if the meta device cannot run them."""

ALSO = {
    "mobilevit": ["mobilevitv2_050"],
    "nfnet": ["nf_resnet26", "dm_nfnet_f0"],
    "resnetv2": ["resnetv2_50d_frn"],
}
"""Further models of families whose smallest model does not show their peculiarities."""

EXPLAINED = {
    "mobilevitv2_050": "F.relu in the linear attention is a function, which no module swap reaches",
    "resnetv2_50d_frn": "max(x, tau) inside FilterResponseNormTlu2d is a function, which no module swap reaches",
    "efficientvit_mit": "ReLU feature map of linear attention stays: it must not be negative",
    "gemma4_vit": "clamps of linear layers to ranges of the weights, which are infinite until weights are loaded",
    "metaformer": "relu inside StarReLU and SquaredReLU stays: the square is smooth",
}
"""Families and models in which a non-smooth operator remains, with the reason."""


class OutOfTimeError(BaseException):
    """Time limit of a model; no Exception, so that code which handles any failure lets it through."""


@dataclass(kw_only=True)
class Row:
    """Result for one model."""

    family: str
    model: str = ""
    parameters: int = 0
    error: str = ""
    replaced: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    kinks: Counter[str] | None = None
    allowed: Counter[str] = field(default_factory=Counter)
    kinks_before: Counter[str] = field(default_factory=Counter)
    stem: str = ""
    stem_works: bool = False


def families() -> dict[str, list[str]]:
    """Model names by timm module, timm's own only, without the tiny `test_` models."""
    return {
        module: names
        for module in timm.list_modules()
        if (names := [n for n in timm.list_models(module=module) if not n.startswith("test_") and _is_timms(n)])
    }


def survey(names: dict[str, list[str]], progress: bool = False) -> Iterator[Row]:
    """One row per family, in alphabetical order."""
    tasks = [(f, group) for f in sorted(names) for group in (names[f], *([name] for name in ALSO.get(f, [])))]
    for family, candidates in tasks:
        started = time.monotonic()
        row = Row(family=family)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _fill(row, candidates)
        except (Exception, OutOfTimeError) as error:
            row.error = _short(error)
        if progress:
            print(f"{family:28} {time.monotonic() - started:5.1f} s  {row.model} {row.error}", file=sys.stderr)
        yield row


def unexplained(rows: Sequence[Row]) -> list[Row]:
    """Families whose trace failed, or in which a kink remains without a known reason."""
    return [row for row in rows if row.kinks is None or (row.kinks and not _reason(row))]


def table(rows: Sequence[Row]) -> str:
    """The census as Markdown."""
    clean = sum(row.kinks is not None and not row.kinks for row in rows)
    lines = [
        "# Census of the smooth swap and the small-image stem",
        "",
        f"timm {timm.__version__}, torch {torch.__version__}, {date.today().isoformat()}. Written by "
        "`python -m timm_robust_plugins.smooth.census --output plugins/smooth/census.md`.",
        "",
        f"The smallest model of each of {len({row.family for row in rows})} timm modules (without its `test_` models) "
        f"and a few peculiar ones, {len(rows)} in all, swapped to SiLU. "
        f"No non-smooth activation operator is left in {clean}; "
        f"the stem for 32-pixel images fits {sum(row.stem_works for row in rows)}.",
        "",
        "*before*, *after*: non-smooth operators on what depends on the image, in one train-mode forward, before and "
        "after the swap. *allowed*: max-pooling, and guards against division by zero. *stem at 32*: how the last "
        "map of about 4x4 is reached (kwargs of `create_model`, strides set to 1, poolings removed), or why it is not.",
        "",
        "| family | model | M parameters | replaced | before | after | allowed | stem at 32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        replaced = ", ".join(f"{n} {kind}" for kind, n in row.replaced.items()) or "none"
        after = "not traced: " + row.error if row.kinks is None else _counts(row.kinks) or "clean"
        cells = [row.family, row.model, f"{row.parameters / 1e6:.1f}", replaced, _counts(row.kinks_before) or "0"]
        lines.append("| " + " | ".join([*cells, after, _counts(row.allowed) or "0", row.stem]) + " |")
    reasons = [(row.model, _reason(row)) for row in rows if row.kinks and _reason(row)]
    if reasons:
        lines += ["", "Where an operator remains:", "", *(f"- {model}: {why}." for model, why in reasons)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the table; the exit status is 1 if something is unexplained."""
    parser = argparse.ArgumentParser(description="Census of the smooth swap and the small-image stem over timm.")
    parser.add_argument("--output", type=Path, help="Markdown file; printed when left out")
    parser.add_argument("--families", nargs="*", help="timm modules (all when left out)")
    chosen = parser.parse_args(arguments)
    names = families()
    wanted = {f: names[f] for f in chosen.families if f in names} if chosen.families else names
    rows = list(survey(wanted, progress=True))
    if chosen.output:
        chosen.output.write_text(table(rows))
    else:
        print(table(rows))
    for row in unexplained(rows):
        print(f"unexplained: {row.family}: {row.error or _counts(row.kinks or Counter())}", file=sys.stderr)
    return 1 if unexplained(rows) else 0


def _reason(row: Row) -> str:
    return EXPLAINED.get(row.model) or EXPLAINED.get(row.family, "")


def _fill(row: Row, names: list[str]) -> None:
    row.model, row.parameters = _smallest(names)
    with _limit():
        row.kinks_before = _trace(row, swap=False)[0]
        row.kinks, row.allowed = _trace(row, swap=True)
    try:
        with _limit():
            row.stem, row.stem_works = _stem(row.model)
    except OutOfTimeError as error:
        row.stem = f"no: {_short(error)}"


def _smallest(names: list[str]) -> tuple[str, int]:
    """The model with the fewest parameters among those that can be built on the meta device, if any.

    Names of large variants are skipped while others remain, since counting all of timm takes minutes.
    """
    counts = {}
    for name in [n for n in names if not _LARGE.search(n)] or names:
        try:
            counts[name] = sum(p.numel() for p in _make(name, "meta").parameters())
        except Exception:  # the next size of the family will do
            continue
    if not counts:
        return names[0], sum(p.numel() for p in _make(names[0], "cpu").parameters())
    return min(counts.items(), key=lambda item: item[1])


def _make(name: str, device: str) -> nn.Module:
    def create() -> nn.Module:
        return timm.create_model(name, num_classes=10)

    return on_meta(create) if device == "meta" else create()


def _trace(row: Row, swap: bool) -> tuple[Counter[str], Counter[str]]:
    """Kinks and allowed operators, on the meta device or, if a model cannot run there, on the CPU."""
    failure: Exception | None = None
    for device in ("meta", "cpu") if row.parameters <= CPU_LIMIT else ("meta",):
        try:
            model: Any = _make(row.model, device)
            if swap:
                report = swap_activations(model, "silu")
                row.replaced, row.left = report.replaced, list(report.left)
            images = torch.zeros(2, *model.default_cfg["input_size"], device=device)
            trace = trace_nonsmooth(model, images)
            return trace.activation, trace.allowed
        except Exception as error:
            failure = failure or error
    raise failure or RuntimeError("not traced")


def _stem(name: str) -> tuple[str, bool]:
    """Changes that make the 32-pixel stem, and whether at least 2x2 positions remain."""

    def create(**kwargs: object) -> nn.Module:
        return timm.create_model(name, num_classes=10, **kwargs)

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plan = make_plan(create, name, image_size=32, in_chans=3, small=True, taken=())
    except UserError as error:
        return f"no: {error}", False
    said = [str(w.message) for w in caught if "divides the resolution" in str(w.message)]
    how = [f"{key}={value}" for key, value in plan.kwargs.items()]
    how += [f"{len(plan.surgery[key])} {what}" for key, what in _SURGERY.items() if plan.surgery.get(key)]
    text = ", ".join(how) or "as it is"
    return (f"coarse ({text}): {said[0].split(':')[0].split('which ')[-1]}" if said else text), not said


_SURGERY = {"stride": "strides", "remove": "poolings removed"}


_LARGE = re.compile(r"large|huge|giant|enormous|so\d+m|_\d+b_|_[lgh]_|_[45]\d\d$|_384$|152|200|269")


def _is_timms(name: str) -> bool:
    return timm.models.model_entrypoint(name).__module__.startswith("timm.")


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{n} {op}" for op, n in sorted(counter.items()))


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:140].replace("|", "/")


@contextmanager
def _limit(seconds: int = SECONDS_PER_MODEL) -> Iterator[None]:
    """Raises after `seconds` on systems with alarms."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise OutOfTimeError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    sys.exit(main())
