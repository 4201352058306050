"""What a run keeps after each epoch, and how it comes back: best/, last/ with everything that resuming needs, metrics.

A snapshot is taken between epochs only, so it needs no random state: the engine draws each epoch from its number.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from timm_robust.errors import RunFailed
from timm_robust.runs.checkpoint import load_state, rescue, save_model, save_state
from timm_robust.utils.files import write_text

if TYPE_CHECKING:
    from timm_robust.training.engine import Engine

METRICS = "metrics.jsonl"


def state_of(engine: Engine) -> dict[str, Any]:
    """Everything that resuming after this epoch needs, as tensors and plain values."""
    scaler = engine.accelerator.scaler
    return {
        "epoch": engine.epoch + 1,
        "best": list(engine.best),
        "model": engine.unwrapped_model.state_dict(),
        "modifiers": engine.modifiers.state_dict(),
        "companion": engine.auxiliary_model.state_dict() if engine.auxiliary_model else None,
        "optimizer": engine.optimizer.state_dict(),
        "schedule": engine.schedule.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "defense": engine.defense.state_dict(),
        "watch": engine.watch.state_dict(),
        "diagnosis": engine.diagnosis.state_dict(),
        "returns": engine.rollbacks,
        "extra_steps": engine.attacker.extra_steps,
        "image_passes": engine.counter.images,
    }


def anything_kept(engine: Engine) -> bool:
    """Whether an epoch was ever kept; not if the run was killed in its first, or while a teacher was trained."""
    return (engine.config.output / METRICS).exists()


def restore(engine: Engine) -> list[dict[str, Any]]:
    """Puts the engine back to the end of the epoch in last/; returns the rows up to there."""
    state = load_state(engine.config.output / "last")
    engine.epoch, engine.best = state["epoch"], tuple(state["best"])
    engine.unwrapped_model.load_state_dict(state["model"])
    engine.modifiers.load_state_dict(state["modifiers"])
    if engine.auxiliary_model:
        engine.auxiliary_model.load_state_dict(state["companion"])
    engine.optimizer.load_state_dict(state["optimizer"])
    engine.schedule.load_state_dict(state["schedule"])
    if engine.accelerator.scaler and state["scaler"]:
        engine.accelerator.scaler.load_state_dict(state["scaler"])
    engine.defense.load_state_dict(state["defense"])
    engine.watch.load_state_dict(state["watch"])
    engine.diagnosis.load_state_dict(state["diagnosis"])
    engine.rollbacks, engine.attacker.extra_steps = state["returns"], state["extra_steps"]
    engine.counter.images = state["image_passes"]
    lines = (engine.config.output / METRICS).read_text().splitlines()
    return [json.loads(line) for line in lines if line][: engine.epoch]


def keep(engine: Engine, row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes best/, last/ and metrics.jsonl; a full disk costs this epoch's files and not the run."""
    output, model = engine.config.output, engine.eval_model
    metadata = {
        **engine.config.metadata,
        "epoch": row["epoch"],
        "metrics": {k: v for k, v in row.items() if k != "epoch"},
    }
    steps: list[Callable[[], None]] = [lambda: write_metrics(engine, rows)]
    if row["best"]:
        steps.append(lambda: save_model(output / "best", model, metadata))
    steps += [
        lambda: save_model(output / "last", model, metadata),
        lambda: save_state(output / "last", state_of(engine)),
    ]
    try:
        for step in steps:
            step()
    except OSError as error:
        if engine.epoch + 1 == engine.config.recipe.epochs:
            raise RunFailed(rescue(model, metadata, output, error)) from error
        engine.display.warn(
            f"epoch {row['epoch']} could not be saved ({error}); training goes on, the next epoch tries again"
        )


def save_aside(engine: Engine, folder: str, **about: Any) -> None:
    """Writes the trained weights as they are into a folder of the run's: what `Run.save` promises."""
    if not engine.main:
        return
    metadata = {**engine.config.metadata, "epoch": engine.epoch + 1, **about}
    try:
        save_model(engine.config.output / folder, engine.unwrapped_model, metadata)
    except OSError as error:
        engine.display.warn(f"checkpoint {folder} could not be saved ({error}); training goes on")


def end_early(engine: Engine, rows: list[dict[str, Any]]) -> None:
    """Writes what ended the run to the last epoch that was kept."""
    found = engine.watch.take()
    rows[-1]["events"] = [*rows[-1].get("events", []), *found.get("events", [])]
    if engine.main:
        write_metrics(engine, rows)


def write_metrics(engine: Engine, rows: list[dict[str, Any]]) -> None:
    """All rows at once and not appended: a resumed run rewrites what an interrupted epoch may have left."""
    write_text(engine.config.output / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
