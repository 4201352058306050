"""The training loop.

    for epoch:
        for batch:                                       Batch(images, targets, index, view), defense.augment(...)
            perturbed = defense.perturb(batch)           unwrapped model; no weight gradients
            with modifiers.weights(...):                 may move the weights, and puts them back
                output = defense.loss(batch, perturbed)  wrapped model, under autocast
                backward
            every `accumulate` batches: clip, optimizer step, schedule, modifiers.after_step()
            defense.commit(batch, perturbed, output)
            monitors.on_step(step)                       may ask to stop, or to go back to the last epoch
        check on the validation split                    clean and robust accuracy; random state preserved
        monitors.on_epoch_end(row)                       likewise, and may add to the row
        metrics.jsonl, best/ (by robust, then clean accuracy), last/ with everything that resuming needs
        monitors.on_epoch_saved(row)

Every random draw of an epoch comes from (seed, epoch, process) alone, so a killed run that resumes after its last
finished epoch ends with the same weights as an uninterrupted one.

The loop knows events, not monitors: what watches a run is a callback (see `training/monitors/base.py`), which holds a
context and not the engine, and asks for a stop or a rollback by raising it. Only the engine writes the engine's fields.
Nothing that the engine holds refers back to it, so it is freed, with its networks, as soon as the run is over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from accelerate.utils import set_seed
from timm.utils import distribute_bn
from torch import Tensor, nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.data import Batch, make_eval_loader, make_train_loader
from timm_robust.defense import Perturbed, StepOutput, TrainContext
from timm_robust.errors import RunFailed
from timm_robust.models.factory import build_like
from timm_robust.modifier import Modifiers, MovingAverage
from timm_robust.recipes.recipe import Recipe
from timm_robust.runs.history import add_events, was_stopped
from timm_robust.training.accelerator import FP16_GRADIENT_SCALE, make_accelerator, unpatch
from timm_robust.training.config import TrainConfig
from timm_robust.training.epoch_sums import EpochSums
from timm_robust.training.eps_warmup import warmed_up
from timm_robust.training.monitors.base import (
    MAX_ROLLBACKS,
    CallbackContext,
    Request,
    Rollback,
    Step,
    StopTraining,
)
from timm_robust.training.monitors.standard import make_monitors
from timm_robust.training.optim import Schedule, build_optimizer, scaled
from timm_robust.training.pass_counter import PassCounter
from timm_robust.training.resume import RunFiles
from timm_robust.training.run_state import RunState
from timm_robust.utils.progress import Display


class Engine:
    """Trains one `TrainConfig`. `fit()` runs it; afterwards `config.output` holds best/, last/ and metrics.jsonl."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.accelerator = make_accelerator(config.precision, config.device, config.trackers, config.output)
        recipe = scaled(config.recipe, self.accelerator.num_processes)
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        self.display = config.display if self.main else Display(quiet=True)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.unwrapped_model = config.model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        averages = {"ema": MovingAverage(recipe.ema)} if recipe.ema else {}
        self.modifiers = Modifiers({**config.modifiers, **averages}, self.unwrapped_model)
        self.eval_model = self.modifiers.eval_model
        self.loader = self._make_loader(recipe)
        self.defense = config.defense
        self.steps = len(self.loader) * self.defense.replays
        auxiliary_model = self.defense.auxiliary_model(partial(build_like, self.unwrapped_model))
        optimizer = build_optimizer(
            nn.ModuleList([self.unwrapped_model, *([auxiliary_model] if auxiliary_model else [])]), recipe
        )
        self.schedule = Schedule(optimizer, recipe, math.ceil(self.steps / recipe.accumulate))
        self.counter = PassCounter(*{self.unwrapped_model, self.eval_model}, on=not config.compile)
        if config.compile:
            self.unwrapped_model.compile()
        self.model, self.optimizer = self.accelerator.prepare(self.unwrapped_model, optimizer)
        self.auxiliary_model = self.accelerator.prepare(auxiliary_model.to(self.device)) if auxiliary_model else None
        self.attacker, self.checker = map(self._make_attacker, (self.unwrapped_model, self.eval_model))
        self.state = RunState()
        self.files = RunFiles(
            config.output,
            config.metadata,
            model=self.unwrapped_model,
            eval_model=self.eval_model,
            state=self.state,
            display=self.display,
            writes=self.main,
        )
        self.run = self._make_run(recipe)
        self.context = CallbackContext(
            run=self.run,
            state=self.state,
            defense=self.defense,
            data=config.data,
            checker=self.checker,
            counter=self.counter,
            display=self.display,
            is_main=self.main,
            num_processes=self.accelerator.num_processes,
        )
        self.monitors = make_monitors(config, self.context, self.accelerator)

    def _make_loader(self, recipe: Recipe) -> Any:
        config = self.config
        return make_train_loader(
            config.data.train,
            batch_size=recipe.batch_size,
            augment=recipe.augment,
            pad=recipe.pad,
            pad_mode=recipe.pad_mode,
            cutout_size=recipe.cutout_size,
            seed=config.seed,
            device=self.device,
            channels_last=config.channels_last,
            workers=config.workers,
            shard=(self.accelerator.process_index, self.accelerator.num_processes),
            extra=config.data.extra,
        )

    def _make_attacker(self, model: nn.Module) -> Attacker:
        scale = FP16_GRADIENT_SCALE if self.config.precision == "fp16" else 1.0
        return Attacker(model, self.config.threat, autocast=self.accelerator.autocast, gradient_scale=scale)

    def _make_run(self, recipe: Recipe) -> TrainContext:
        """What the method may know of the run; holds no engine."""
        config, loader, state = self.config, self.loader, self.state
        return TrainContext(
            model=self.model,
            unwrapped_model=self.unwrapped_model,
            attacker=self.attacker,
            threat=config.threat,
            recipe=recipe,
            num_classes=config.data.num_classes,
            num_train=config.data.num_train,
            image_size=config.data.image_size,
            device=self.device,
            epochs=recipe.epochs,
            steps_per_epoch=self.steps,
            seed=config.seed,
            output=config.output,
            frame_size=loader.frame_size,
            in_chans=config.data.in_chans,
            teachers={name: teacher.to(self.device) for name, teacher in config.teachers.items()},
            auxiliary_model=self.auxiliary_model,
            distilled=config.data.distilled.manifest if config.data.distilled else {},
            batches=lambda: loader.epoch(state.epoch),
            unaugmented=partial(make_eval_loader, config.data.train, batch_size=250, device=self.device),
            save=self.files.save_aside,
            say=self.display.say,
        )

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return self.state.epoch

    def fit(self) -> list[dict[str, Any]]:
        """Trains to the end and returns the rows of metrics.jsonl.

        Raises:
            RunFailed: the loss is no longer finite, or a callback failed; last/ and best/ hold the last good epoch.
        """
        try:
            self.defense.setup(self.run)
            self.modifiers.setup(self.run)
            if self.config.resume:
                self._resume()
            self.monitors.on_run_start()
            self._run_epochs()
            self.monitors.on_run_end(self.state.rows)
        finally:
            self.monitors.on_exit()
            for network in filter(None, (self.model, self.auxiliary_model)):
                unpatch(self.accelerator, network)
        return self.state.rows

    def _run_epochs(self) -> None:
        discarded: list[dict[str, Any]] = []  # events of epochs that left no row
        while self.state.epoch < self.config.recipe.epochs and not was_stopped(self.state.rows):
            try:
                row = {"epoch": self.state.epoch + 1, **self._train_epoch(), **self._check()}
                self._finish_epoch(row, discarded)
                discarded = []
                self.monitors.on_epoch_saved(row)
            except (StopTraining, Rollback) as request:
                discarded.append(request.entry(self.state.epoch + 1))
                if isinstance(request, StopTraining) or self.state.rollbacks >= MAX_ROLLBACKS:
                    self._end_early(request, discarded)
                    break
                self._roll_back(request)

    def _train_epoch(self) -> dict[str, float]:
        """Trains on every batch once, or as often as the method replays it; returns metrics of the training images."""
        started = time.perf_counter()
        recipe, epoch = self.config.recipe, self.state.epoch
        draws = 1_000_003 * (epoch + 1) + 7_919 * self.accelerator.process_index + 104_729 * self.state.rollbacks
        set_seed(self.config.seed + draws)
        for network in self._trained():
            network.train()
        passes_before = self.counter.passes
        self._warm_up_eps(0)
        self.defense.on_epoch_start(epoch)
        self.modifiers.on_epoch_start(epoch)
        self.monitors.on_epoch_start(epoch)
        sums = EpochSums(self.device)
        for step, batch in enumerate(self._batches()):
            self._warm_up_eps(step)
            update = (step + 1) % recipe.accumulate == 0 or step + 1 == self.steps
            output, norm = self._step(batch, update)
            sums.add(batch, output)
            self.monitors.on_step(
                Step(epoch, step + 1, self.steps, batch, output, sums.totals["loss"], sums.images, norm)
            )
        self.defense.on_epoch_end(epoch)
        if self.accelerator.num_processes > 1:
            distribute_bn(self.unwrapped_model, self.accelerator.num_processes, reduce=True)
        self.modifiers.on_epoch_end(epoch)
        metrics = {**sums.means(), "lr": self.optimizer.param_groups[0]["lr"]}
        if not self.config.compile:  # there they are not counted
            metrics["passes"] = round((self.counter.passes - passes_before) * self.defense.replays / sums.images, 3)
        metrics["seconds"] = round(time.perf_counter() - started, 2)
        return metrics

    def _step(self, batch: Batch, update: bool) -> tuple[StepOutput, Tensor | None]:
        """One batch: attack, loss, backward, perhaps an update, commit; returns the output and the gradient's norm."""
        recipe, norm = self.config.recipe, None
        with self._synchronised(update):
            perturbed = self.defense.perturb(batch)
            with self.modifiers.weights(partial(self._loss, batch, perturbed)):
                with self.accelerator.autocast():
                    output = self.defense.loss(batch, perturbed)
                self.accelerator.backward(output["loss"] / recipe.accumulate)
        if update:
            norm = self._update(recipe.clip_grad)
        self.defense.commit(batch, perturbed, output)
        return output, norm

    def _loss(self, batch: Batch, perturbed: Perturbed) -> Tensor:
        """Loss for a modifier, without gradient synchronisation."""
        with self._synchronised(False), self.accelerator.autocast():
            return self.defense.loss(batch, perturbed)["loss"]

    def _synchronised(self, on: bool) -> ExitStack:
        """Whether processes average the gradients of what is computed inside."""
        stack = ExitStack()
        for network in () if on else (self.model, self.auxiliary_model):
            if network is not None:
                stack.enter_context(self.accelerator.no_sync(network))
        return stack

    def _trained(self) -> list[nn.Module]:
        return [self.unwrapped_model, *([self.auxiliary_model] if self.auxiliary_model else [])]

    def _batches(self) -> Iterator[Batch]:
        """The epoch's batches, each as often in a row as the method replays it."""
        for batch in map(self.defense.augment, self.loader.epoch(self.state.epoch)):
            for _ in range(self.defense.replays):
                yield batch

    def _warm_up_eps(self, step: int) -> None:
        """Sets the radius of the coming step for the method and its attacks; checks and monitors keep the full one.

        Args:
            step: step of the epoch, from 0.
        """
        done = self.state.epoch + (step + 1) / self.steps
        threat = warmed_up(self.config.threat, self.config.recipe, done)
        if threat != self.attacker.threat:
            self.run.threat = threat
            self.attacker.retarget(threat)

    def _update(self, clip: float) -> Tensor | None:
        """An optimizer step; returns the gradient's norm before clipping, if anybody needs it."""
        norm = None
        if clip or self.monitors.wants_gradient_norm:
            parameters = [p for network in self._trained() for p in network.parameters()]
            norm = self.accelerator.clip_grad_norm_(parameters, clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:  # fp16 overflow
            self.schedule.step()
            self.modifiers.after_step()
        return norm

    def _check(self) -> dict[str, float]:
        """Clean and robust accuracy on the validation split, in eval mode, with the random state preserved."""
        started = time.perf_counter()
        config, recipe = self.config, self.config.recipe
        n = len(self.context.checked_labels)
        found: dict[str, float] = {}
        for name in dict.fromkeys(("clean", recipe.check_attack)):  # once, if the check is of clean images
            batches = make_eval_loader(
                config.data.val, batch_size=max(recipe.batch_size, 250), device=self.device, n_examples=n
            )
            found[name] = self.context.evaluate(name, batches, seed=config.seed)
        done = {"val_clean": found["clean"], "val_robust": found[recipe.check_attack]}
        return {**done, "check_seconds": round(time.perf_counter() - started, 2)}

    def _finish_epoch(self, row: dict[str, Any], discarded: list[dict[str, Any]]) -> None:
        """Accepts an epoch: asks the monitors, and writes everything.

        Args:
            row: its row of metrics.jsonl.
            discarded: events of epochs before it that left no row.
        """
        score = row["val_robust"], row["val_clean"]
        score = score if self.defense.adversarial else score[::-1]  # standard training is least accurate where robust
        row["best"] = score > self.state.best and self.defense.may_be_best(self.state.epoch)
        requests = self.monitors.on_epoch_end(row)
        add_events(row, discarded, [request.entry(row["epoch"]) for request in requests])
        self.state.best = score if row["best"] else self.state.best
        self.state.rows.append(row)
        self.files.save(self.state.rows, self._state, final=row["epoch"] == self.config.recipe.epochs)
        self.state.epoch += 1

    def _state(self) -> dict[str, Any]:
        """Everything that resuming after this epoch needs, as tensors and plain values."""
        scaler = self.accelerator.scaler
        return {
            "epoch": self.state.epoch + 1,
            "best": list(self.state.best),
            "rollbacks": self.state.rollbacks,
            "extra_steps": self.attacker.extra_steps,
            "image_passes": self.counter.images,
            "model": self.unwrapped_model.state_dict(),
            "modifiers": self.modifiers.state_dict(),
            "auxiliary_model": self.auxiliary_model.state_dict() if self.auxiliary_model else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "defense": self.defense.state_dict(),
            "monitors": self.monitors.state_dict(),
        }

    def _restore(self) -> dict[str, Any]:
        """Puts the run back to the end of the epoch in last/; returns the whole state that was saved there."""
        state, self.state.rows = self.files.read()
        self.state.epoch, self.state.best = state["epoch"], tuple(state["best"])
        self.unwrapped_model.load_state_dict(state["model"])
        self.modifiers.load_state_dict(state["modifiers"])
        if self.auxiliary_model:
            self.auxiliary_model.load_state_dict(state["auxiliary_model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.defense.load_state_dict(state["defense"])
        self.monitors.load_state_dict(state["monitors"])
        self.counter.images = state["image_passes"]
        return state

    def _resume(self) -> None:
        """Goes on where the run in the folder was killed."""
        if self.files.exist():
            state = self._restore()
            self.state.rollbacks, self.attacker.extra_steps = state["rollbacks"], state["extra_steps"]
        self.display.say(f"resuming after epoch {self.state.epoch} of {self.config.recipe.epochs}")

    def _roll_back(self, request: Rollback) -> None:
        """Goes on from the last epoch kept, with other random draws or a stronger attack."""
        if not self.state.epoch:
            raise RunFailed(f"there is no epoch to go back to: {request}")
        self.accelerator.wait_for_everyone()
        self._restore()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.rollbacks += 1
        self.attacker.extra_steps += request.extra_steps
        self.display.say(f"going on after epoch {self.state.epoch}, attack steps added: {self.attacker.extra_steps}")

    def _end_early(self, request: Request, events: list[dict[str, Any]]) -> None:
        """Ends the run with the last epoch kept, whose row says why."""
        if not self.state.rows:
            raise RunFailed(f"training was stopped in its first epoch, and nothing is kept: {request}")
        events[-1]["answer"] = StopTraining.answer
        add_events(self.state.rows[-1], after=events)
        self.files.write_metrics(self.state.rows)
