"""The one training loop.

    for epoch:
        for batch:                                       Batch(images, targets, index, view), defense.augment(...)
            perturbed = defense.perturb(batch)           bare module; no weight gradients
            with modifiers.weights(...):                 may move the weights, and puts them back
                output = defense.loss(batch, perturbed)  wrapped module, under autocast
                backward
            every `accumulate` batches: clip, optimizer step, schedule, modifiers.after_step()
            defense.commit(batch, perturbed, output)
            now and then: watch for catastrophic overfitting
        check on the validation split                    clean and robust accuracy, random state kept
        metrics.jsonl, best/ (by robust, then clean accuracy), last/ with everything that resuming needs

Every draw of an epoch comes from (seed, epoch, process) alone, so a killed run that resumes after its last finished
epoch ends with the same weights as an uninterrupted one.
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
from timm_robust.defense import Perturbed, TrainContext
from timm_robust.evaluation.accuracy import accuracy, robust_correct
from timm_robust.evaluation.attack_spec import parse_attack
from timm_robust.models.factory import build_like
from timm_robust.modifier import Modifiers, MovingAverage
from timm_robust.runs.history import was_stopped
from timm_robust.training.accelerator import FP16_GRADIENT_SCALE, make_accelerator
from timm_robust.training.config import TrainConfig
from timm_robust.training.eps_warmup import warm_up_eps
from timm_robust.training.monitors.catastrophic_overfitting import CatastrophicOverfittingMonitor, Collapsed
from timm_robust.training.monitors.nan import require_finite_loss, require_finite_weights
from timm_robust.training.monitors.robust_overfitting import RobustOverfittingMonitor
from timm_robust.training.optim import Schedule, build_optimizer, scaled
from timm_robust.training.pass_counter import PassCounter
from timm_robust.training.resume import anything_kept, end_early, keep, restore, save_aside
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
        self.loader = make_train_loader(
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
        scale = FP16_GRADIENT_SCALE if config.precision == "fp16" else 1.0
        self.attacker = Attacker(
            self.unwrapped_model, config.threat, autocast=self.accelerator.autocast, gradient_scale=scale
        )
        self.checker = Attacker(
            self.eval_model, config.threat, autocast=self.accelerator.autocast, gradient_scale=scale
        )
        self.watch, self.diagnosis = (
            CatastrophicOverfittingMonitor(self, recipe),
            RobustOverfittingMonitor(self, recipe),
        )
        self.epoch, self.best, self.rollbacks = 0, (-1.0, -1.0), 0
        self.run = TrainContext(
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
            frame_size=self.loader.frame_size,
            in_chans=config.data.in_chans,
            teachers={name: teacher.to(self.device) for name, teacher in config.teachers.items()},
            auxiliary_model=self.auxiliary_model,
            distilled=config.data.distilled.manifest if config.data.distilled else {},
            batches=lambda: self.loader.epoch(self.epoch),
            unaugmented=partial(make_eval_loader, config.data.train, batch_size=250, device=self.device),
            save=partial(save_aside, self),
            say=self.display.say,
        )

    def fit(self) -> list[dict[str, Any]]:
        """Trains to the end and returns the rows of metrics.jsonl.

        Raises:
            RunFailed: the loss is no longer finite; last/ and best/ hold the last good epoch.
        """
        config = self.config
        self.defense.setup(self.run)
        self.modifiers.setup(self.run)
        rows = restore(self) if config.resume and anything_kept(self) else []
        if config.resume:
            self.display.say(f"resuming after epoch {self.epoch} of {config.recipe.epochs}")
        observers = config.observers
        if observers and self.main:
            observers.run_start(self.run)
        if config.trackers:
            self.accelerator.init_trackers("timm-robust", config={"seed": config.seed, "threat": str(config.threat)})
        while self.epoch < config.recipe.epochs and not was_stopped(rows):
            try:
                row = {"epoch": self.epoch + 1, **self._train_epoch(), **self._check()}
                self.watch.judge("validation", self._checked(), row["val_clean"], row["val_robust"], self.epoch)
            except Collapsed as found:
                if found.event.answer == "stop":
                    end_early(self, rows)
                    break
                rows = self._go_back()
                continue
            self._keep(row, rows)
            if config.trackers:
                numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "epoch"}
                self.accelerator.log(numbers, step=self.epoch + 1)
            if observers and self.main:
                observers.epoch_end(self.run, self.epoch, row)
            self.epoch += 1
        if config.trackers:
            self.accelerator.end_training()
        if observers and self.main:
            observers.run_end(self.run, rows)
            for failed in observers.failed:
                self.display.warn(f"observer switched off during the run: {failed}")
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return rows

    def _train_epoch(self) -> dict[str, float]:
        started = time.perf_counter()
        recipe, device = self.config.recipe, self.device
        totals: dict[str, Tensor] = {}
        correct, seen = torch.zeros((), device=device), 0
        draws = 1_000_003 * (self.epoch + 1) + 7_919 * self.accelerator.process_index + 104_729 * self.rollbacks
        set_seed(self.config.seed + draws)
        for network in self._trained():
            network.train()
        passes_before = self.counter.passes
        warm_up_eps(self, 0)
        self.defense.on_epoch_start(self.epoch)
        self.modifiers.on_epoch_start(self.epoch)
        with self.display.bar(f"epoch {self.epoch + 1}/{recipe.epochs}", self.steps):
            for step, batch in enumerate(self._batches()):
                warm_up_eps(self, step)
                update = (step + 1) % recipe.accumulate == 0 or step + 1 == self.steps
                with self._synchronised(update):
                    perturbed = self.defense.perturb(batch)
                    with self.modifiers.weights(partial(self._loss, batch, perturbed)):
                        with self.accelerator.autocast():
                            output = self.defense.loss(batch, perturbed)
                        self.accelerator.backward(output["loss"] / recipe.accumulate)
                if update:
                    self._update(recipe.clip_grad)
                self.defense.commit(batch, perturbed, output)
                seen += len(batch)
                for name, value in output.items():
                    if value.ndim == 0:
                        totals[name] = totals.get(name, torch.zeros((), device=device)) + value.detach() * len(batch)
                if "logits" in output:
                    correct += (output["logits"].detach().argmax(1) == batch.targets).sum()
                if device.type == "cpu" or step % 50 == 49 or step + 1 == self.steps:
                    require_finite_loss(self, totals["loss"].item(), step)
                if self.watch.due(step + 1, self.counter.passes):
                    self.display.status = self.watch.probe(self.epoch, step + 1)
                if self.display.due():
                    status = f"loss {totals['loss'].item() / seen:.3f}  {self.display.status}"
                    self.display.advance(step + 1, status=status)
        require_finite_weights(self)
        self.defense.on_epoch_end(self.epoch)
        if self.accelerator.num_processes > 1:
            distribute_bn(self.unwrapped_model, self.accelerator.num_processes, reduce=True)
        self.modifiers.on_epoch_end(self.epoch)
        metrics = {f"train_{name}": total.item() / seen for name, total in totals.items()}
        metrics["train_accuracy"] = correct.item() / seen
        metrics["lr"] = self.optimizer.param_groups[0]["lr"]
        if not self.config.compile:  # there they are not counted
            metrics["passes"] = round((self.counter.passes - passes_before) * self.defense.replays / seen, 3)
        metrics["seconds"] = round(time.perf_counter() - started, 2)
        return metrics

    def _loss(self, batch: Batch, perturbed: Perturbed) -> Tensor:
        """The update's loss for a modifier to look at; processes are not told of it."""
        with self._synchronised(False), self.accelerator.autocast():
            return self.defense.loss(batch, perturbed)["loss"]

    def _synchronised(self, on: bool) -> ExitStack:
        """Whether processes exchange the gradients of what is computed inside."""
        stack = ExitStack()
        for network in () if on else (self.model, self.auxiliary_model):
            if network is not None:
                stack.enter_context(self.accelerator.no_sync(network))
        return stack

    def _trained(self) -> list[nn.Module]:
        return [self.unwrapped_model, *([self.auxiliary_model] if self.auxiliary_model else [])]

    def _batches(self) -> Iterator[Batch]:
        """The epoch's batches, each as often in a row as the method replays it."""
        for batch in map(self.defense.augment, self.loader.epoch(self.epoch)):
            for _ in range(self.defense.replays):
                yield batch

    def _update(self, clip: float) -> None:
        if clip or self.diagnosis.on:
            parameters = [p for network in self._trained() for p in network.parameters()]
            self.diagnosis.add(self.accelerator.clip_grad_norm_(parameters, clip or math.inf))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:  # fp16 overflow
            self.schedule.step()
            self.modifiers.after_step()

    def _check(self) -> dict[str, float]:
        """Clean and robust accuracy on the held-out split, in eval mode, with the random state kept."""
        started = time.perf_counter()
        config, recipe = self.config, self.config.recipe
        n = len(self._checked())
        found: dict[str, float] = {}
        for name in dict.fromkeys(("clean", recipe.check_attack)):  # once, where the check is of clean images
            batches = make_eval_loader(
                config.data.val, batch_size=max(recipe.batch_size, 250), device=self.device, n_examples=n
            )
            with self.counter.paused():
                found[name] = accuracy(robust_correct(parse_attack(name), self.checker, batches, seed=config.seed))
        done = {"val_clean": found["clean"], "val_robust": found[recipe.check_attack]}
        self.display.status = f"validation: clean {done['val_clean']:.1%} robust {done['val_robust']:.1%}"
        return {**done, "check_seconds": round(time.perf_counter() - started, 2)}

    def _checked(self) -> Tensor:
        """Classes of the validation images that are checked."""
        labels = torch.from_numpy(self.config.data.val.labels)
        return labels[: self.config.recipe.check_examples or None]

    def _report(self, row: dict[str, Any]) -> None:
        self.display.say(
            f"epoch {row['epoch']:>3}/{self.config.recipe.epochs}  loss {row['train_loss']:.3f}  "
            f"train {row['train_accuracy']:6.1%}  validation clean {row['val_clean']:6.1%}  "
            f"robust {row['val_robust']:6.1%}  {row['seconds']:.1f} s" + ("  *best" if row["best"] else "")
        )

    def _keep(self, row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Ends an epoch: is it the best, what was seen in it, and everything written."""
        score = row["val_robust"], row["val_clean"]
        score = score if self.defense.adversarial else score[::-1]  # standard training is least accurate where robust
        row["best"] = score > self.best and self.defense.may_be_best(self.epoch)
        self.best = score if row["best"] else self.best
        row.update(self.watch.take())
        rows.append(row)
        self.diagnosis.close(rows, self._checked())
        if self.main:
            keep(self, row, rows)
        self._report(row)

    def _go_back(self) -> list[dict[str, Any]]:
        """Back to the last sound epoch, to go on with other draws or with a stronger attack."""
        rollbacks, extra = self.rollbacks + 1, self.attacker.extra_steps
        self.accelerator.wait_for_everyone()
        rows = restore(self)
        self.optimizer.zero_grad(set_to_none=True)
        self.rollbacks, self.attacker.extra_steps = rollbacks, extra + (self.config.recipe.on_collapse == "escalate")
        self.display.say(f"going on after epoch {self.epoch}, attack steps added: {self.attacker.extra_steps}")
        return rows
