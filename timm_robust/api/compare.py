"""Several methods side by side: the same seeds, budget and evaluation for all. Torch-free at import.

Each run lies in a folder of its own, made by `train`; the folder of the comparison holds what they reached together.
A run that fails is told and does not end the others.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.errors import RunFailed, UserError, unknown
from timm_robust.options import parse_options
from timm_robust.plugin import get_manager
from timm_robust.report import Comparison
from timm_robust.runs.finished import FinishedRun
from timm_robust.runs.folder import MAY_CHANGE, as_plain, free_folder, make_folder, require_new
from timm_robust.runs.layout import COMPARISON, COMPARISON_PAGE, COMPARISON_PICTURES, MANIFEST
from timm_robust.threat import make_threat
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
    from torch import nn

SHARED = (
    *("eps", "norm", "recipe", "batch_size", "lr", "recipe_args", "model_kwargs", "pretrained", "stem", "image_size"),
    *("extra_data", "extra_share"),
    *("data_dir", "download", "precision", "device", "channels_last", "workers"),
    *("test_attacks", "test_examples", "autoattack_seconds"),
)
"""Arguments of `train` that all runs share, beside model, data and epochs; activations are the method's own."""

FREE = {*MAY_CHANGE, "workers"} - {"test_examples"}
"""Those that may differ when a comparison is resumed: neither what is trained nor what is measured changes."""

SEEDS = range(2**31)


def compare(
    methods: Sequence[str],
    model: str | nn.Module = "resnet18",
    data: Any = "digits",
    *,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int | None = None,
    output: str | Path | None = None,
    method_args: Mapping[str, Mapping[str, Any]] | None = None,
    resume: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Comparison:
    """Trains a model with each of several methods and seeds, and measures all of them alike.

    The seeds come one after the other, each with all methods, so that an interrupted comparison has whole rounds.

    Args:
        methods: defenses, see `timm-robust methods`, each with modifiers or without: "trades", "trades+awp"; at least
            one.
        model: a timm model name, or a module of your own; every run starts from a copy of it.
        data: as in `train`.
        seeds: whole numbers from 0 to 2147483647, at least one. A seed draws weights, batches and validation split.
        epochs: of every run; by default the recipe's.
        output: the folder, with one folder METHOD-seedS for each run; by default `runs/compare-MODEL-DATA`, numbered
            if that is taken.
        method_args: by method or modifier, its options by name: `{"moat": {"stages": "r2"}}`.
        resume: go on with the comparison in `output`, with the same arguments. What is finished is taken as it is, what
            is not goes on; methods and seeds may be added, and other attacks measured.
        quiet: no progress.
        settings: what all runs share, as in `train`: eps, norm, recipe, batch_size, lr, recipe_args, model_kwargs,
            pretrained, stem, image_size, extra_data, extra_share, data_dir, download, precision, device,
            channels_last, workers, test_attacks, test_examples, autoattack_seconds.

    Returns:
        the runs; its `repr` is the table, `rows()` are the numbers. Also in comparison.md, comparison.json, and as
        curves in comparison.png and comparison.svg.

    Raises:
        UserError: any of the arguments is wrong; nothing was trained.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a comparison runs in one process: start it without a launcher, or its runs one by one")
    for name in settings:
        if name not in SHARED:
            raise unknown("setting", name, SHARED, hint="what runs of a comparison share")
    methods, seeds, options = _listed(methods), _listed(seeds), dict(method_args or {})
    folder = Path(output) if output is not None else default_output(model, data)
    before: dict[str, Any] = {}
    if resume:
        if output is None:
            raise UserError("resume needs the folder of the comparison to continue: pass output")
        before = read_asked(folder)
        settings = {name: before[name] for name in SHARED if name in FREE & before.keys()} | settings
    asked = as_plain({"model": model, "data": data, "epochs": epochs, **settings})
    if resume:
        _require_same(folder, before, asked, options)
        methods = [*before["methods"], *(name for name in methods if name not in before["methods"])]
        seeds = [*before["seeds"], *(seed for seed in seeds if seed not in before["seeds"])]
        options = {**before["method_args"], **options}
    _check(methods, seeds, options, epochs, settings)

    from timm_robust.api.train import TEST_ATTACKS, train
    from timm_robust.evaluation.attack_spec import parse_attack

    attacks = [parse_attack(name).name for name in settings.get("test_attacks", TEST_ATTACKS)]
    if not resume:
        require_new(folder, COMPARISON, "comparison")
    make_folder(folder)
    runs = {(name, seed): FinishedRun(name, seed, folder / f"{name}-seed{seed}") for name in methods for seed in seeds}
    for run in runs.values():
        run.read(attacks)
    plain = {**asked, "methods": methods, "seeds": seeds, "method_args": as_plain(options)}
    result, display = Comparison(folder, list(runs.values()), plain), Display(quiet)
    _save(result, display)
    order = [runs[name, seed] for seed in seeds for name in methods]
    for number, run in enumerate(order, 1):
        title = f"run {number} of {len(order)}: {run.method}, seed {run.seed}"
        if run.done:
            display.say(f"{title}: finished before, taken as it is")
            continue
        display.say(title)
        with _outcome(result, run, display, resume):
            if not run.resumable and (run.folder / MANIFEST).exists():
                shutil.rmtree(run.folder)  # it ended in its first epoch: there is nothing to go on from
            method, modifiers = _parts(run.method)
            train(
                **settings | {"test_attacks": attacks},
                model=model if isinstance(model, str) else copy.deepcopy(model),
                method=method,
                modifiers={name: options.get(name) for name in modifiers} or (),
                data=data,
                epochs=epochs,
                method_args=options.get(method) or None,
                output=run.folder,
                seed=run.seed,
                resume=run.resumable,
                quiet=quiet,
            )
        run.read(attacks)
        _save(result, display)
    _draw(result, display)
    return result


@contextmanager
def _outcome(result: Comparison, run: FinishedRun, display: Display, resume: bool) -> Iterator[None]:
    """Keeps what a run fails with; a mistake that every run would share is raised."""
    trace = run.folder.with_name(f"{run.folder.name}-error.txt")
    trace.unlink(missing_ok=True)
    try:
        yield
    except UserError as error:
        # train has refused before it began: where none ever began, it is the settings that are wrong
        if not any((one.folder / MANIFEST).exists() for one in result.runs):
            if not resume:
                _undo(result, run)
            raise
        run.error = str(error)
    except RunFailed as error:
        run.error = str(error)
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        run.error = f"{type(error).__name__}: {line}".rstrip(": ") + f" (see {trace.name})"
        with suppress(OSError):
            trace.write_text(traceback.format_exc())
    if run.error:
        display.warn(f"{run.method}, seed {run.seed} failed: {run.error}")


def _undo(result: Comparison, run: FinishedRun) -> None:
    """Leaves no trace of a comparison that never began."""
    for name in (COMPARISON, COMPARISON_PAGE):
        (result.output / name).unlink(missing_ok=True)
    with suppress(OSError):
        run.folder.rmdir()
        result.output.rmdir()


def read_asked(folder: Path) -> dict[str, Any]:
    """What the comparison in `folder` was started with: methods, seeds, method_args and the shared settings.

    Raises:
        UserError: there is no comparison, or its record is damaged.
    """
    record = folder / COMPARISON
    try:
        asked = dict(json.loads(record.read_text())["asked"])
        return {"methods": asked.pop("methods"), "seeds": asked.pop("seeds"), **asked}
    except FileNotFoundError:
        raise UserError(f"nothing to resume in {folder}: {COMPARISON} is not there") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} cannot be read: {error}") from error


def _require_same(folder: Path, before: dict[str, Any], asked: dict[str, Any], options: dict[str, Any]) -> None:
    added = {"methods", "seeds", "method_args"}
    pairs = {name: (before.get(name), asked.get(name)) for name in ({*before, *asked} - FREE - added)}
    for name in _plugins(before["methods"]):
        if name in options:
            pairs[f"options of {name}"] = before["method_args"].get(name, {}), as_plain(options[name])
    for name, (old, new) in sorted(pairs.items()):
        if old != new:
            raise UserError(
                f"the comparison in {folder} was started with {name}={old!r}, not {new!r}: "
                "resume it as it was, or start a new one in another folder"
            )


def _parts(entry: str) -> tuple[str, list[str]]:
    """Method and modifiers of an entry such as `trades+awp`."""
    method, *modifiers = entry.split("+")
    return method, modifiers


def _plugins(entries: Sequence[str]) -> list[str]:
    """All methods and modifiers, each once."""
    return list(dict.fromkeys(name for entry in entries for name in entry.split("+")))


def _listed(values: Any) -> list[Any]:
    return [values] if isinstance(values, (str, int)) else list(values)


def _check(
    methods: list[str], seeds: list[int], options: dict[str, Any], epochs: int | None, settings: dict[str, Any]
) -> None:
    """Refuses, before anything is trained, what would be wrong for one of the runs."""
    if not methods:
        raise UserError("there is nothing to compare: pass at least one method, see timm-robust methods")
    if not seeds:
        raise UserError("there is nothing to run: pass at least one seed")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed not in SEEDS:
            raise UserError(f"seed {seed!r} is out of range: expected whole numbers from 0 to {SEEDS[-1]}")
    given: dict[str, list[Any]] = {"method": methods, "seed": seeds}
    for kind, values in given.items():
        if twice := [value for value in values if values.count(value) > 1]:
            raise UserError(f"{kind} {twice[0]!r} is given twice: expected each once")
    from timm_robust.api.train import parse_modifiers

    manager = get_manager()
    for name in options:
        if name not in (plugins := _plugins(methods)):
            raise unknown("method or modifier", name, plugins, hint="its options are given, but it is not compared")
    norm = make_threat(settings.get("norm", "Linf"), settings.get("eps"), image_size=32).norm
    for entry in methods:
        name, modifiers = _parts(entry)
        spec = manager.defense(name).spec
        if twice := [modifier for modifier in modifiers if modifiers.count(modifier) > 1]:
            raise UserError(f"method {entry!r} has modifier {twice[0]!r} twice: expected each once")
        parse_options(manager.load_config(name), dict(options.get(name, {})), owner=f"method {name!r}")
        parse_modifiers({modifier: options.get(modifier) for modifier in modifiers})
        if epochs is None and "epochs" in spec.recommends:
            raise UserError(f"method {name!r} recommends epochs of its own: pass epochs, the same for all")
        known = manager.load_target(name).norms
        if norm not in known:
            raise UserError(f"method {name!r} knows the norm {' or '.join(known)} only, not {norm}")


def default_output(model: Any, data: Any) -> Path:
    """Where a comparison goes that names no folder; None stands for the default of either."""
    model, data = "resnet18" if model is None else model, "digits" if data is None else data
    name = model if isinstance(model, str) else type(model).__name__
    source = Path(data).stem if isinstance(data, (str, Path)) else "data"
    path = Path("runs") / f"compare-{name}-{source}".replace("/", "_").lower()
    return free_folder(path) if path.exists() else path


def _save(result: Comparison, display: Display) -> None:
    """After every run, so that an interrupted comparison has its table."""
    from timm_robust.utils.files import write_json, write_text

    try:
        write_json(result.output / COMPARISON, result.to_dict())
        write_text(result.output / COMPARISON_PAGE, result.markdown())
    except OSError as error:
        display.warn(f"the table could not be written into {result.output} ({error})")


def _draw(result: Comparison, display: Display) -> None:
    try:
        result.draw([result.output / name for name in COMPARISON_PICTURES])
    except OSError as error:
        display.warn(f"the picture could not be written into {result.output} ({error})")
