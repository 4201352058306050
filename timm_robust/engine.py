"""The one training loop.

    for epoch:
        for batch:                                       Batch(images, targets, index, view)
            perturbed = defense.perturb(batch)           bare module; no weight gradients
            output = defense.loss(batch, perturbed)      wrapped module, under autocast
            backward; every `accumulate` batches: clip, optimizer step, schedule, moving average
            defense.commit(batch, perturbed, output)
        check on the validation split                    clean and robust accuracy, random state kept
        metrics.jsonl, best/ (by robust, then clean accuracy), last/ with everything that resuming needs

Every draw of an epoch comes from (seed, epoch, process) alone, so a killed run that resumes after its last finished
epoch ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor

from timm_robust.accelerator import FP16_GRADIENT_SCALE, make_accelerator
from timm_robust.attacks import Attacker
from timm_robust.checkpoint import load_state, rescue, save_model, save_state, write_text
from timm_robust.data import DataBundle, make_eval_loader, make_train_loader
from timm_robust.defense import Defense, Run
from timm_robust.errors import RunFailed
from timm_robust.evaluation.accuracy import accuracy, parse_measure, verdicts
from timm_robust.models import PixelModel
from timm_robust.optim import Schedule, build_optimizer
from timm_robust.plugin.manager import Observers
from timm_robust.progress import Display
from timm_robust.recipe import Recipe
from timm_robust.threat import Threat


@dataclass
class Job:
    """Everything that one training run needs, resolved."""

    model: PixelModel
    defense: Defense
    data: DataBundle
    recipe: Recipe
    threat: Threat
    output: Path
    card: dict[str, Any]
    seed: int = 0
    precision: str = "fp32"
    device: str | None = None
    channels_last: bool = True
    compile: bool = False
    workers: int | None = None
    resume: bool = False
    trackers: list[str] = field(default_factory=list)
    display: Display = field(default_factory=Display)
    observers: Observers | None = None


class Engine:
    """Trains one `Job`. `fit()` runs it; afterwards `job.output` holds best/, last/ and metrics.jsonl."""

    def __init__(self, job: Job) -> None:
        self.job = job
        recipe = job.recipe
        self.accelerator = make_accelerator(job.precision, job.device, job.trackers, job.output)
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        self.display = job.display if self.main else Display(quiet=True)
        layout = torch.channels_last if job.channels_last else torch.contiguous_format
        self.bare = job.model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.ema = ModelEmaV3(self.bare, decay=recipe.ema) if recipe.ema else None
        self.loader = make_train_loader(
            job.data.train,
            batch_size=recipe.batch_size,
            augment=recipe.augment,
            pad=recipe.pad,
            pad_mode=recipe.pad_mode,
            seed=job.seed,
            device=self.device,
            channels_last=job.channels_last,
            workers=job.workers,
            shard=(self.accelerator.process_index, self.accelerator.num_processes),
        )
        self.steps = len(self.loader)
        optimizer = build_optimizer(self.bare, recipe)
        self.schedule = Schedule(optimizer, recipe, math.ceil(self.steps / recipe.accumulate))
        if job.compile:
            self.bare.compile()
        self.model, self.optimizer = self.accelerator.prepare(self.bare, optimizer)
        scale = FP16_GRADIENT_SCALE if job.precision == "fp16" else 1.0
        self.attacker = Attacker(self.bare, job.threat, autocast=self.accelerator.autocast, gradient_scale=scale)
        shipped = self.ema.module if self.ema else self.bare
        self.checker = Attacker(shipped, job.threat, autocast=self.accelerator.autocast, gradient_scale=scale)
        self.epoch, self.best = 0, (-1.0, -1.0)
        self.defense = job.defense
        self.run = Run(
            model=self.model,
            bare=self.bare,
            attacker=self.attacker,
            threat=job.threat,
            recipe=recipe,
            num_classes=job.data.num_classes,
            num_train=len(job.data.train),
            image_size=job.data.image_size,
            device=self.device,
            epochs=recipe.epochs,
            steps_per_epoch=self.steps,
            seed=job.seed,
            output=job.output,
        )

    def fit(self) -> list[dict[str, Any]]:
        """Trains to the end and returns the rows of metrics.jsonl.

        Raises:
            RunFailed: the loss is no longer finite; last/ and best/ hold the last good epoch.
        """
        job = self.job
        self.defense.setup(self.run)
        rows = self._resume() if job.resume else []
        observers = job.observers
        if observers and self.main:
            observers.run_start(self.run)
        if job.trackers:
            self.accelerator.init_trackers("timm-robust", config={"seed": job.seed, "threat": str(job.threat)})
        while self.epoch < job.recipe.epochs:
            row = {"epoch": self.epoch + 1, **self._train_epoch(), **self._check()}
            rows.append(row)
            self._keep(row, rows)
            self._report(row)
            if job.trackers:
                self.accelerator.log({k: v for k, v in row.items() if k != "epoch"}, step=self.epoch + 1)
            if observers and self.main:
                observers.epoch_end(self.run, self.epoch, row)
            self.epoch += 1
        if job.trackers:
            self.accelerator.end_training()
        if observers and self.main:
            observers.run_end(self.run, rows)
            for failed in observers.failed:
                self.display.warn(f"observer switched off during the run: {failed}")
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return rows

    def _train_epoch(self) -> dict[str, float]:
        started = time.perf_counter()
        recipe, device = self.job.recipe, self.device
        totals: dict[str, Tensor] = {}
        correct, seen = torch.zeros((), device=device), 0
        set_seed(self.job.seed + 1_000_003 * (self.epoch + 1) + 7_919 * self.accelerator.process_index)
        self.bare.train()
        self.defense.on_epoch_start(self.epoch)
        with self.display.bar(f"epoch {self.epoch + 1}/{recipe.epochs}", self.steps):
            for step, batch in enumerate(self.loader.epoch(self.epoch)):
                update = (step + 1) % recipe.accumulate == 0 or step + 1 == self.steps
                with nullcontext() if update else self.accelerator.no_sync(self.model):
                    perturbed = self.defense.perturb(batch)
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
                    self._require_finite(totals["loss"], step)
                if self.display.due():
                    status = f"loss {totals['loss'].item() / seen:.3f}  {self.display.status}"
                    self.display.advance(step + 1, status=status)
        self._require_finite_weights()
        self.defense.on_epoch_end(self.epoch)
        if self.accelerator.num_processes > 1:
            distribute_bn(self.bare, self.accelerator.num_processes, reduce=True)
        metrics = {f"train_{name}": total.item() / seen for name, total in totals.items()}
        metrics["train_accuracy"] = correct.item() / seen
        metrics["lr"] = self.optimizer.param_groups[0]["lr"]
        metrics["seconds"] = round(time.perf_counter() - started, 2)
        return metrics

    def _update(self, clip: float) -> None:
        if clip:
            self.accelerator.clip_grad_norm_(self.bare.parameters(), clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:  # fp16 overflow
            self.schedule.step()
        if self.ema:
            self.ema.update(self.bare, step=self.schedule.steps)

    def _require_finite(self, total: Tensor, step: int) -> None:
        if math.isfinite(total.item()):
            return
        raise RunFailed(
            f"the loss is {total.item()} in epoch {self.epoch + 1}, batch {step + 1} of {self.steps}: {self._kept()}; "
            "try a smaller --lr, --set clip_grad=1, or --precision fp32"
        )

    def _require_finite_weights(self) -> None:
        """Weights can be lost while the loss is finite: bfloat16 convolutions on maps of 2x2 do that on some CPUs."""
        for name, value in self.bare.named_parameters():
            if not value.isfinite().all():
                raise RunFailed(
                    f"weight {name!r} is no longer finite after epoch {self.epoch + 1}: {self._kept()}; "
                    "try --precision fp32, a smaller --lr, or a larger --image-size"
                )

    def _kept(self) -> str:
        return f"{self.job.output}/last holds epoch {self.epoch}" if self.epoch else "no epoch was finished before"

    def _check(self) -> dict[str, float]:
        """Clean and robust accuracy on the held-out split, in eval mode, with the random state kept."""
        started = time.perf_counter()
        job, recipe = self.job, self.job.recipe
        n = min(recipe.check_examples or len(job.data.val), len(job.data.val))
        done: dict[str, float] = {}
        for key, name in (("val_clean", "clean"), ("val_robust", recipe.check_attack)):
            batches = make_eval_loader(
                job.data.val, batch_size=max(recipe.batch_size, 250), device=self.device, n_examples=n
            )
            done[key] = accuracy(verdicts(parse_measure(name), self.checker, batches, seed=job.seed))
        self.display.status = f"validation: clean {done['val_clean']:.1%} robust {done['val_robust']:.1%}"
        return {**done, "check_seconds": round(time.perf_counter() - started, 2)}

    def _report(self, row: dict[str, Any]) -> None:
        self.display.say(
            f"epoch {row['epoch']:>3}/{self.job.recipe.epochs}  loss {row['train_loss']:.3f}  "
            f"train {row['train_accuracy']:6.1%}  validation clean {row['val_clean']:6.1%}  "
            f"robust {row['val_robust']:6.1%}  {row['seconds']:.1f} s" + ("  *best" if row["best"] else "")
        )

    def _keep(self, row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Writes best/, last/ and metrics.jsonl; a full disk costs this epoch's files and not the run."""
        score = (row["val_robust"], row["val_clean"])
        row["best"] = score > self.best
        self.best = max(score, self.best)
        if not self.main:
            return
        output, model = self.job.output, self.ema.module if self.ema else self.bare
        card = {**self.job.card, "epoch": row["epoch"], "metrics": {k: v for k, v in row.items() if k != "epoch"}}
        steps: list[Callable[[], None]] = [lambda: write_text(output / "metrics.jsonl", _as_lines(rows))]
        if row["best"]:
            steps.append(lambda: save_model(output / "best", model, card))
        steps += [lambda: save_model(output / "last", model, card), lambda: save_state(output / "last", self._state())]
        try:
            for step in steps:
                step()
        except OSError as error:
            if self.epoch + 1 == self.job.recipe.epochs:
                raise RunFailed(rescue(model, card, output, error)) from error
            self.display.warn(
                f"epoch {row['epoch']} could not be saved ({error}); training goes on, the next epoch tries again"
            )

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch + 1,
            "best": list(self.best),
            "model": self.bare.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "defense": self.defense.state_dict(),
        }

    def _resume(self) -> list[dict[str, Any]]:
        state = load_state(self.job.output / "last")
        self.epoch, self.best = state["epoch"], tuple(state["best"])
        self.bare.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.defense.load_state_dict(state["defense"])
        rows = [json.loads(line) for line in (self.job.output / "metrics.jsonl").read_text().splitlines() if line]
        self.display.say(f"resuming after epoch {self.epoch} of {self.job.recipe.epochs}")
        return rows[: self.epoch]


def _as_lines(rows: list[dict[str, Any]]) -> str:
    """All rows at once and not appended: a resumed run rewrites what an interrupted epoch may have left."""
    return "".join(json.dumps(row) + "\n" for row in rows)
