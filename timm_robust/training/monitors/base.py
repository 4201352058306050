"""The contract of a callback: the events of a run, and what may be asked for in return.

    on_run_start(context)                        after the model is built, or read back to resume
    for epoch:
        on_epoch_start(epoch)
        for batch:
            on_step(step)                        after the update; may raise StopTraining or Rollback
        on_epoch_end(row)                        after the check on the validation split, before anything is written:
                                                 may add entries to the row, or raise StopTraining or Rollback
        on_epoch_saved(row)                      best/, last/ and metrics.jsonl hold the epoch
    on_run_end(rows)                             not after an error
    on_exit()                                    however the run ended

The monitors of every run (catastrophic overfitting, robust overfitting, NaN, progress, trackers), the observers of
plugins, and the callbacks that a user passes to `train` all implement it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from timm_robust.attacks.attacker import Attacker
from timm_robust.data import Batch, DataBundle
from timm_robust.defense import Defense, StepOutput, TrainContext
from timm_robust.evaluation.accuracy import accuracy, robust_correct
from timm_robust.evaluation.attack_spec import parse_attack
from timm_robust.runs.layout import LAST
from timm_robust.training.pass_counter import PassCounter
from timm_robust.training.run_state import RunState
from timm_robust.utils.progress import Display

T = TypeVar("T")

MAX_ROLLBACKS = 5
"""Rollbacks of one run; a run that asks for another stops."""


class Request(Exception):
    """What a callback asks the engine for by raising it, on every process alike.

    Args:
        reason: one sentence.
        event: entry for `events` in metrics.jsonl; by default the reason with its epoch.
    """

    answer = ""

    def __init__(self, reason: str, event: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.event = event

    def entry(self, epoch: int) -> dict[str, Any]:
        """The entry for `events` in metrics.jsonl.

        Args:
            epoch: number of the epoch under way, from 1.
        """
        if self.event is not None:
            return dict(self.event)
        return {"kind": "callback", "epoch": epoch, "reason": str(self), "answer": self.answer}


class StopTraining(Request):
    """Ends the run. Raised within an epoch, that epoch is discarded; raised at its end or later, it is kept.

    Args:
        keep_epoch: False discards the epoch at whose end it is raised.
    """

    answer = "stop"

    def __init__(self, reason: str, event: Mapping[str, Any] | None = None, *, keep_epoch: bool = True) -> None:
        super().__init__(reason, event)
        self.keep_epoch = keep_epoch


class Rollback(Request):
    """Discards the epoch under way and goes on from the last one kept, with other random draws.

    Args:
        extra_steps: PGD steps to add to every training attack from then on.
    """

    answer = "restore"

    def __init__(self, reason: str, event: Mapping[str, Any] | None = None, *, extra_steps: int = 0) -> None:
        super().__init__(reason, event)
        self.extra_steps = extra_steps


@dataclass(frozen=True)
class Step:
    """A training step, once the weights are updated and the method has committed.

    Tensors are on the device: reading one on the host (`.item()`) waits for the device, at every step a loss of speed.

    Attributes:
        epoch: number of epochs finished before this one.
        number: step of the epoch, from 1 to `steps`.
        steps: steps of an epoch, on this process.
        batch: clean images as the method augmented them.
        output: output of `Defense.loss`: "loss", mostly "logits", and other scalars.
        loss_sum: sum of the loss over the epoch's images so far.
        images: number of the epoch's images so far, on this process.
        gradient_norm: norm of the parameters' gradient before clipping; None if no optimizer step was taken, or nobody
            clips or asks for it.
    """

    epoch: int
    number: int
    steps: int
    batch: Batch
    output: StepOutput
    loss_sum: Tensor
    images: int
    gradient_norm: Tensor | None = None


@dataclass(frozen=True)
class CallbackContext:
    """What a callback may know of a run, and measure in it. To be read, not written.

    It holds the networks: a callback that keeps it keeps them in memory.

    Attributes:
        run: model, threat, recipe, seed, device, output folder and so on, as methods know them.
        state: finished epochs, rollbacks and rows so far.
        defense: the method.
        data: training, validation and test split.
        checker: attacks the network that is checked and saved (the average, where weights are averaged) under the full
            threat.
        counter: forward-backward passes so far; `counter.paused()` leaves out what is measured inside.
        display: the progress bar and lines of the run, quiet on all processes but the first.
        is_main: whether this is the first process, which writes files.
        num_processes: number of processes that train together.
    """

    run: TrainContext
    state: RunState
    defense: Defense
    data: DataBundle
    checker: Attacker
    counter: PassCounter
    display: Display
    is_main: bool = True
    num_processes: int = 1

    @property
    def checked_labels(self) -> Tensor:
        """Classes of the validation images in the check after each epoch, int64 [N]."""
        return torch.from_numpy(self.data.val.labels)[: self.run.recipe.check_examples or None]

    def evaluate(self, attack: str, batches: Iterable[Batch], *, seed: int = 0) -> float:
        """Accuracy in [0, 1] of the network that is saved, in eval mode; leaves modes, random state and passes alone.

        Args:
            attack: "clean", or an attack such as "pgd-10-1".
            batches: images to measure on.
            seed: random seed of the attack.
        """
        with self.counter.paused():
            return accuracy(robust_correct(parse_attack(attack), self.checker, batches, seed=seed))

    def agree(self, value: T) -> T:
        """The value of the first process, on all processes; each of them has to call this."""
        return broadcast_object_list([value])[0] if self.num_processes > 1 else value

    def kept(self) -> str:
        """Which checkpoint is left if the epoch under way is lost, for messages."""
        folder, epoch = self.run.output / LAST, self.state.epoch
        return f"{folder} holds epoch {epoch}" if epoch else "no epoch was finished before"

    def say(self, text: str) -> None:
        """Prints a lasting line, on the first process."""
        self.display.say(text)

    def warn(self, text: str) -> None:
        """Prints a warning, on the first process, even when quiet."""
        if self.is_main:
            self.display.warn(text)


class Callback:
    """Watches a run: overrides the events it wants, and is passed as `timm_robust.train(..., callbacks=[...])`.

        class Report(timm_robust.Callback):
            def on_epoch_end(self, row):
                self.context.say(f"epoch {row['epoch']}: robust {row['val_robust']:.1%}")
                if row["val_robust"] > 0.5:
                    raise timm_robust.StopTraining("robust enough")

    The base class is a convenience: any object that has some of these methods will do. Events are called on every
    process, in the order of the callbacks, after the monitors of every run. An exception in a callback ends the run. A
    draw from the global random generators changes the run; `CallbackContext.evaluate` leaves them alone. A teacher that
    is trained first is not watched.
    """

    context: CallbackContext

    wants_gradient_norm = False
    """Whether `Step.gradient_norm` is needed."""

    def on_run_start(self, context: CallbackContext) -> None:
        """Called once before the first epoch, after `load_state_dict` if the run resumes; keeps `context`."""
        self.context = context

    def on_epoch_start(self, epoch: int) -> None:
        """Called before the first batch.

        Args:
            epoch: number of finished epochs.
        """

    def on_step(self, step: Step) -> None:
        """Called after each training step, so it must be cheap: see `Step`."""

    def on_epoch_end(self, row: dict[str, Any]) -> None:
        """Called after the check on the validation split and before anything is saved.

        Args:
            row: the epoch's row of metrics.jsonl: "epoch" (from 1), "train_loss", "val_clean", "val_robust", "best" and
                so on. Entries that are added must be JSON; numbers go to the trackers too.
        """

    def on_epoch_saved(self, row: Mapping[str, Any]) -> None:
        """Called when the checkpoints and metrics.jsonl hold the epoch."""

    def on_run_end(self, rows: list[dict[str, Any]]) -> None:
        """Called once after the last epoch with all rows of metrics.jsonl; not after an error."""

    def on_exit(self) -> None:
        """Called last, whether the run ended well or by an error: to close files and displays."""

    def state_dict(self) -> dict[str, Any]:
        """State to save after each epoch, as tensors and plain values; a resumed or rolled-back run gets it back."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, before `on_run_start` or after a rollback."""


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))
"""Names of all events."""
