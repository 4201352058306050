"""`compare`: several methods with the same seeds, budget and evaluation. Torch-free at import.

Each run is made by `train`, in its own folder below that of the comparison, which has the tables. A run that fails is
reported and does not end the others.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm_robust.api.prepare import parse_modifiers
from timm_robust.api.settings import DEFAULTS, FREE_IN_A_COMPARISON, SETTINGS, SHARED, TrainSettings
from timm_robust.errors import RunFailed, UserError, unknown
from timm_robust.options import parse_options
from timm_robust.plugin import get_manager
from timm_robust.report import Comparison
from timm_robust.runs.finished import FinishedRun
from timm_robust.runs.folder import as_plain, free_folder, make_folder, require_new, require_same
from timm_robust.runs.layout import COMPARISON, COMPARISON_PAGE, COMPARISON_PICTURES, MANIFEST
from timm_robust.threat import make_threat
from timm_robust.utils.progress import Display

if TYPE_CHECKING:
    from torch import nn


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
        methods: training methods, each with modifiers or without: "trades", "trades+awp"; at least one.
        model: timm model name, or a module of your own; every run starts from a copy of it.
        data: as in `train`.
        seeds: random seeds, from 0 to 2147483647, at least one. A seed draws weights, batches and validation split.
        epochs: passes over the training set, the same for all; default: the recipe's.
        output: folder of the comparison, with a folder METHOD-seedS for each run; default: runs/compare-MODEL-DATA,
            numbered if taken.
        method_args: options by method or modifier: {"moat": {"stages": "r2"}}.
        resume: continue the comparison in `output`, with the arguments that it was started with. Finished runs are
            kept, others continue; methods and seeds may be added, and other attacks measured.
        quiet: no progress output.
        settings: what all runs share, as in `train`: eps, norm, recipe, batch_size, lr, recipe_args, model_kwargs,
            pretrained, stem, data_dir, download, image_size, extra_data, extra_share, test_attacks, test_examples,
            autoattack_seconds, device, precision, channels_last, workers.

    Returns:
        the runs; its `repr` is the table, `rows()` are the numbers. Also in comparison.md, comparison.json, and as
        curves in comparison.png and comparison.svg.

    Raises:
        UserError: an argument is wrong; nothing was trained.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a comparison runs in one process: start it without a launcher, or its runs one by one")
    for name in settings:
        if name not in SHARED:
            raise unknown("setting", name, SHARED, hint="what the runs of a comparison share")
    methods, seeds, options = _listed(methods), _listed(seeds), dict(method_args or {})
    folder = Path(output) if output is not None else default_output(model, data)
    before: dict[str, Any] = {}
    if resume:
        if output is None:
            raise UserError("resume needs the folder of the comparison to continue: pass output")
        before = read_asked(folder)
        settings = {name: before[name] for name in SHARED if name in FREE_IN_A_COMPARISON & before.keys()} | settings
    asked = as_plain({"model": model, "data": data, "epochs": epochs, **settings})
    if resume:
        _require_same(folder, before, asked, options)
        methods = [*before["methods"], *(name for name in methods if name not in before["methods"])]
        seeds = [*before["seeds"], *(seed for seed in seeds if seed not in before["seeds"])]
        options = {**before["method_args"], **options}
    shared = TrainSettings(model=model, data=data, epochs=epochs, quiet=quiet, **settings)
    _check(methods, seeds, options, shared)

    from timm_robust.evaluation.attack_spec import parse_attack

    shared = replace(shared, test_attacks=[parse_attack(name).name for name in shared.test_attacks])
    if not resume:
        require_new(folder, COMPARISON, "comparison")
    make_folder(folder)
    runs = [FinishedRun(name, seed, folder / f"{name}-seed{seed}") for name in methods for seed in seeds]
    plain = {**asked, "methods": methods, "seeds": seeds, "method_args": as_plain(options)}
    result = Comparison(folder, runs, plain)
    _run_all(result, shared, options, resume)
    _draw(result, Display(quiet))
    return result


def _run_all(result: Comparison, shared: TrainSettings, options: Mapping[str, Any], resume: bool) -> None:
    """Trains what is not finished, seed by seed, and saves the table after every run."""
    display = Display(shared.quiet)
    for run in result.runs:
        run.read(shared.test_attacks)
    _save(result, display)
    seeds = dict.fromkeys(run.seed for run in result.runs)
    order = [run for seed in seeds for run in result.runs if run.seed == seed]
    for number, run in enumerate(order, 1):
        title = f"run {number} of {len(order)}: {run.method}, seed {run.seed}"
        if run.done:
            display.say(f"{title}: finished before, taken as it is")
            continue
        display.say(title)
        with _outcome(result, run, display, resume):
            if not run.resumable and (run.folder / MANIFEST).exists():
                shutil.rmtree(run.folder)  # it ended in its first epoch: there is nothing to continue from
            _train(run, shared, options)
        run.read(shared.test_attacks)
        _save(result, display)


def _train(run: FinishedRun, shared: TrainSettings, options: Mapping[str, Any]) -> None:
    """One run of the comparison, from its last epoch where it has one."""
    from timm_robust.api.train import train

    method, modifiers = _parts(run.method)
    train(
        **{name: getattr(shared, name) for name in SHARED if name != "model"},
        model=shared.model if isinstance(shared.model, str) else copy.deepcopy(shared.model),
        method=method,
        modifiers={name: options.get(name) for name in modifiers} or (),
        method_args=options.get(method) or None,
        output=run.folder,
        seed=run.seed,
        resume=run.resumable,
        quiet=shared.quiet,
    )


@contextmanager
def _outcome(result: Comparison, run: FinishedRun, display: Display, resume: bool) -> Iterator[None]:
    """Keeps the error of a run; a mistake that all runs would share is raised."""
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
    """Arguments that the comparison in `folder` was started with: methods, seeds, method_args, shared settings.

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
    old, new = {**DEFAULTS, **before}, {**DEFAULTS, **asked}
    names = set(SHARED) - FREE_IN_A_COMPARISON
    for name in _plugins(before["methods"]):
        if name in options:
            key = f"options of {name}"
            old[key], new[key] = before["method_args"].get(name, {}), as_plain(options[name])
            names.add(key)
    require_same(old, new, names, f"the comparison in {folder}")


def _parts(entry: str) -> tuple[str, list[str]]:
    """Method and modifiers of an entry such as `trades+awp`."""
    method, *modifiers = entry.split("+")
    return method, modifiers


def _plugins(entries: Sequence[str]) -> list[str]:
    """All methods and modifiers, each once."""
    return list(dict.fromkeys(name for entry in entries for name in entry.split("+")))


def _listed(values: Any) -> list[Any]:
    return [values] if isinstance(values, (str, int)) else list(values)


def _check(methods: list[str], seeds: list[int], options: dict[str, Any], shared: TrainSettings) -> None:
    """Refuses, before anything is trained, arguments that are wrong for one of the runs."""
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
    manager = get_manager()
    for name in options:
        if name not in (plugins := _plugins(methods)):
            raise unknown("method or modifier", name, plugins, hint="its options are given, but it is not compared")
    norm = make_threat(shared.norm, shared.eps, image_size=32).norm
    for entry in methods:
        name, modifiers = _parts(entry)
        spec = manager.defense(name).spec
        if twice := [modifier for modifier in modifiers if modifiers.count(modifier) > 1]:
            raise UserError(f"method {entry!r} has modifier {twice[0]!r} twice: expected each once")
        parse_options(manager.load_config(name), dict(options.get(name, {})), owner=f"method {name!r}")
        parse_modifiers({modifier: options.get(modifier) for modifier in modifiers})
        if shared.epochs is None and "epochs" in spec.recommends:
            raise UserError(f"method {name!r} recommends epochs of its own: pass epochs, the same for all")
        known = manager.load_target(name).norms
        if norm not in known:
            raise UserError(f"method {name!r} knows the norm {' or '.join(known)} only, not {norm}")


def default_output(model: Any, data: Any) -> Path:
    """Folder of a comparison that names none; None is the default of either."""
    model = SETTINGS["model"].default if model is None else model
    data = SETTINGS["data"].default if data is None else data
    name = model if isinstance(model, str) else type(model).__name__
    source = Path(data).stem if isinstance(data, (str, Path)) else "data"
    return free_folder(Path("runs") / f"compare-{name}-{source}".replace("/", "_").lower())


def _save(result: Comparison, display: Display) -> None:
    """Writes the table; done after every run, so that an interrupted comparison has it."""
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
