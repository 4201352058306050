"""Catastrophic overfitting: detection, and the recipe's answer to it.

Within an epoch a one-step method can lose all robustness to PGD while its accuracy under its own attack soars
(Wong et al., ICLR 2020; Andriushchenko and Flammarion, NeurIPS 2020). The monitor judges two measurements: the check on
the validation split that the engine makes after each epoch anyway, and, within the epoch, a probe of a few fixed
training images without augmentation, as often as its share of the run's passes allows.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.attacks.attacker import Attacker
from timm_robust.data import Batch, sample
from timm_robust.evaluation.accuracy import accuracy, robust_correct
from timm_robust.evaluation.attack_spec import parse_attack
from timm_robust.recipes.recipe import Recipe
from timm_robust.training.monitors.base import MAX_ROLLBACKS, Callback, Rollback, Step, StopTraining

SHARE = 0.02
"""Largest share of the run's passes spent on probes."""

COST = 15.5
"""Passes per image of one probe at most: clean, FGSM, PGD-10, two gradients. Images that are misclassified already cost
less."""

DROP, GAP = 0.20, 0.20
"""Fractions of images: a drop of PGD accuracy that is an event by itself, and the gap between FGSM and PGD accuracy
that is one when half of the best is lost."""

LEARNED = 0.05
"""Margin of clean accuracy over always predicting the most frequent class, above which robust accuracy is meaningful: a
constant prediction withstands every attack."""

ANSWERS = {
    "warn": "best/ keeps the best epoch; --set on_collapse=stop, restore or escalate does more",
    "stop": "training stops, best/ keeps the best epoch",
    "restore": "going back to the last sound epoch, with other random draws",
    "escalate": "going back to the last sound epoch, with one more attack step",
}


@dataclass(frozen=True)
class CatastrophicOverfittingEvent:
    """A detected collapse.

    Attributes:
        epoch, step: time of detection, both from 1; step 0 is the check after the epoch.
        seen_on: "validation" or "training" images.
        robust: PGD accuracy now, in [0, 1].
        best: highest PGD accuracy so far.
        fgsm: FGSM accuracy now, None if not measured.
        answer: "warn", "stop", "restore" or "escalate".
    """

    epoch: int
    step: int
    seen_on: str
    robust: float
    best: float
    fgsm: float | None = None
    answer: str = "warn"

    def __str__(self) -> str:
        place = f"epoch {self.epoch}" + (f", step {self.step}" if self.step else "")
        fgsm = "" if self.fgsm is None else f" while FGSM accuracy is {self.fgsm:.1%}"
        return (
            f"catastrophic overfitting in {place}: PGD accuracy on {self.seen_on} images fell from {self.best:.1%} "
            f"to {self.robust:.1%}{fgsm}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for metrics.jsonl."""
        return asdict(self)


def collapsed(robust: float, best: float, n: int, fgsm: float | None = None) -> bool:
    """Whether PGD accuracy shows catastrophic overfitting: a drop of 20 points, or of half of it with a second sign.

    The second sign is a drop of more than three standard errors, or FGSM accuracy 20 points above PGD's.

    Args:
        robust: PGD accuracy now, in [0, 1].
        best: highest PGD accuracy so far, this one included.
        n: number of images measured.
        fgsm: FGSM accuracy on the same images, if known.
    """
    lost = best - robust
    if lost > DROP:
        return True
    error = (best * (1 - best) / n) ** 0.5
    return robust < best / 2 and (lost > 3 * error or (fgsm is not None and fgsm - robust > GAP))


def gradient_cosine(attacker: Attacker, images: Tensor, targets: Tensor, noise: Tensor) -> float:
    """Mean cosine between the loss gradients at the images and at noisy ones; near 1 where one attack step suffices.

    Andriushchenko and Flammarion, NeurIPS 2020, section 4. Samples with a zero gradient are left out; 0.0 if none is
    left.

    Args:
        images: float [B, C, H, W] in [0, 1].
        targets: int64 [B].
        noise: same shape as the images, added to them without clipping.
    """
    both = []
    with torch.enable_grad(), attack_mode(attacker.model):
        for points in (images, images + noise):
            points = points.detach().requires_grad_(True)
            loss = F.cross_entropy(attacker.view(points), targets, reduction="sum")
            both.append(torch.autograd.grad(loss, points)[0].flatten(1).double())
    kept = (both[0].norm(dim=1) > 0) & (both[1].norm(dim=1) > 0)
    return F.cosine_similarity(both[0], both[1], dim=1)[kept].mean().item() if kept.any() else 0.0


class CatastrophicOverfittingMonitor(Callback):
    """Detects catastrophic overfitting, and warns, stops, rolls back or escalates, as the recipe says.

    Args:
        recipe: interval and number of images of the probes, and the answer to a collapse.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.best: dict[str, float] = {}
        self.spent = 0.0
        self._looks: list[dict[str, float]] = []
        self._events: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._warned: set[str] = set()  # splits on which a collapse was already reported

    @cached_property
    def batch(self) -> Batch:
        """The fixed training images, without augmentation."""
        run = self.context.run
        return sample(self.context.data.train, self.recipe.watch_examples, seed=run.seed, device=run.device)

    def on_step(self, step: Step) -> None:
        if self.due(step.number, self.context.counter.passes):
            self.context.display.status = self.probe(step.epoch, step.number)

    def on_epoch_end(self, row: dict[str, Any]) -> None:
        self.judge("validation", self.context.checked_labels, row["val_clean"], row["val_robust"], row["epoch"] - 1)
        row.update(self.take())

    def due(self, step: int, passes: float) -> bool:
        """Whether to probe now.

        Args:
            step: step of the epoch, from 1.
            passes: image passes of the run so far.
        """
        if not self.context.defense.adversarial:
            return False
        if self.recipe.watch_every:
            return step % self.recipe.watch_every == 0
        return self.spent + COST * self.recipe.watch_examples <= SHARE * passes

    def probe(self, epoch: int, step: int) -> str:
        """Measures clean, FGSM and PGD-10 accuracy and the gradient cosine on the fixed images.

        Args:
            epoch: epoch, from 0.
            step: step of the epoch, from 1.

        Returns:
            status line for the bar.

        Raises:
            StopTraining, Rollback: see `judge`.
        """
        started = time.perf_counter()
        with self.context.counter.paused() as part:
            seen = self._measure()
        self.spent += part.passes
        self._seconds += time.perf_counter() - started
        self._looks.append({"step": step, **{name: round(value, 4) for name, value in seen.items()}})
        self.judge("training", self.batch.targets, seen["clean"], seen["pgd"], epoch, step, seen["fgsm"])
        return f"training images: PGD {seen['pgd']:.1%} FGSM {seen['fgsm']:.1%} gradient cosine {seen['cosine']:.2f}"

    def _measure(self) -> dict[str, float]:
        attacker = self.context.checker
        seen = {
            key: accuracy(robust_correct(parse_attack(name), attacker, [self.batch]))
            for key, name in (("clean", "clean"), ("fgsm", "fgsm"), ("pgd", "pgd-10-1"))
        }
        images, threat = self.batch.images, attacker.threat
        radius = threat.eps if threat.norm == "Linf" else threat.eps / images[0].numel() ** 0.5
        noise = (torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(images) * radius
        return {**seen, "cosine": gradient_cosine(attacker, images, self.batch.targets, noise)}

    def judge(
        self,
        seen_on: str,
        targets: Tensor,
        clean: float,
        robust: float,
        epoch: int,
        step: int = 0,
        fgsm: float | None = None,
    ) -> None:
        """Reports a collapse; in the first epoch, and under `warn`, that is all.

        Args:
            seen_on: "validation" or "training".
            targets: int64 [N], classes of the images.
            clean, robust, fgsm: accuracies on them, in [0, 1].
            epoch: epoch, from 0.
            step: step of the epoch, from 1; 0 after it.

        Raises:
            StopTraining, Rollback: there is one, and the recipe asks for more than a warning.
        """
        context = self.context
        if not context.defense.adversarial:
            return
        most_frequent = targets.bincount().max().item() / len(targets)
        if clean > most_frequent + LEARNED:
            self.best[seen_on] = max(robust, self.best.get(seen_on, 0.0))
        best = self.best.get(seen_on, 0.0)
        # batch statistics differ between processes within an epoch
        if not context.agree(collapsed(robust, best, len(targets), fgsm)):
            if robust >= 0.75 * best:
                self._warned.discard(seen_on)
            return
        answer = self._answer(epoch)
        event = CatastrophicOverfittingEvent(epoch + 1, step, seen_on, round(robust, 4), round(best, 4), fgsm, answer)
        if answer == "warn":
            if not self._warned:
                self._events.append(event.to_dict())
                context.warn(f"{event}; {ANSWERS[answer]}")
                self._warned.add(seen_on)
            return
        self._warned.clear()
        context.warn(f"{event}; {ANSWERS[answer]}")
        if answer == "stop":
            raise StopTraining(str(event), event.to_dict(), keep_epoch=False)
        raise Rollback(str(event), event.to_dict(), extra_steps=int(answer == "escalate"))

    def _answer(self, epoch: int) -> str:
        answer = self.recipe.on_collapse if epoch else "warn"  # the first epoch has nothing to go back to
        if answer in ("restore", "escalate") and self.context.state.rollbacks >= MAX_ROLLBACKS:
            return "stop"
        return answer

    def take(self) -> dict[str, Any]:
        """Probes and warnings since the last call, for metrics.jsonl."""
        taken: dict[str, Any] = {"looks": self._looks, "look_seconds": round(self._seconds, 2), "events": self._events}
        self._looks, self._seconds, self._events = [], 0.0, []
        return {name: value for name, value in taken.items() if value}

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best), "spent": self.spent, "warned": sorted(self._warned)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.spent, self._warned = dict(state["best"]), state["spent"], set(state["warned"])
