"""Catastrophic overfitting: how it is seen, and what can be done about it.

Within an epoch a one-step method can lose all robustness to PGD while its accuracy under its own attack soars
(Wong et al., ICLR 2020; Andriushchenko and Flammarion, NeurIPS 2020). The watch looks at two places: at the robust
check that the engine makes on the validation split after each epoch anyway, and, between the epochs, at a few fixed
training images without augmentation, as often as its share of the run's passes allows.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list
from torch import Tensor

from timm_robust.attacks.attack_mode import attack_mode
from timm_robust.attacks.attacker import Attacker
from timm_robust.data import Batch, sample
from timm_robust.evaluation.accuracy import accuracy, robust_correct
from timm_robust.evaluation.attack_spec import parse_attack
from timm_robust.recipes.recipe import Recipe

if TYPE_CHECKING:
    from timm_robust.training.engine import Engine

SHARE = 0.02
"""Of the run's passes that the watch may take."""

COST = 15.5
"""Passes that one look costs at most for each of its images: clean, FGSM, PGD-10, two gradients. Fewer are spent where
images are wrong already."""

DROP, GAP = 0.20, 0.20
"""Shares of images: a fall of PGD accuracy that is an event by itself, and the distance of FGSM from PGD that is one
with half of the best gone."""

LEARNED = 0.05
"""Clean accuracy above that of always naming the most frequent class, from which on robust accuracy means something:
what names one class whatever it sees withstands every attack."""

MOST_RETURNS = 5
"""How often a run may go back to its last sound epoch before it stops."""

ANSWERED = {
    "warn": "best/ keeps the best epoch; --set on_collapse=stop, restore or escalate does more",
    "stop": "training stops, best/ keeps the best epoch",
    "restore": "going back to the last sound epoch, with other draws",
    "escalate": "going back to the last sound epoch, with one attack step more",
}


@dataclass(frozen=True)
class CatastrophicOverfittingEvent:
    """One event.

    Attributes:
        epoch, step: where it was seen, both from 1; step 0 is the check after the epoch.
        seen_on: "validation" or "training" images.
        robust: PGD accuracy now, in [0, 1].
        best: the best it has been.
        fgsm: FGSM accuracy now, None where it was not measured.
        answer: what was done.
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
    """Whether PGD accuracy tells of catastrophic overfitting: 20 points lost, or half of it with a second sign.

    The second sign is a loss of more than three standard errors, or FGSM accuracy 20 points above PGD's.

    Args:
        robust: PGD accuracy now, in [0, 1].
        best: the best it has been, this one included.
        n: images that it was measured on.
        fgsm: FGSM accuracy on the same images, where known.
    """
    lost = best - robust
    if lost > DROP:
        return True
    error = (best * (1 - best) / n) ** 0.5
    return robust < best / 2 and (lost > 3 * error or (fgsm is not None and fgsm - robust > GAP))


def gradient_cosine(attacker: Attacker, images: Tensor, targets: Tensor, noise: Tensor) -> float:
    """Mean cosine of the loss gradients at the images and at noisy ones; near 1 where one attack step is enough.

    Andriushchenko and Flammarion, NeurIPS 2020, section 4. Samples with a zero gradient are left out; 0.0 without any.

    Args:
        images: float [B, C, H, W] in [0, 1].
        noise: same shape, added to the images and not clipped.
    """
    both = []
    with torch.enable_grad(), attack_mode(attacker.model):
        for points in (images, images + noise):
            points = points.detach().requires_grad_(True)
            loss = F.cross_entropy(attacker.view(points), targets, reduction="sum")
            both.append(torch.autograd.grad(loss, points)[0].flatten(1).double())
    kept = (both[0].norm(dim=1) > 0) & (both[1].norm(dim=1) > 0)
    return F.cosine_similarity(both[0], both[1], dim=1)[kept].mean().item() if kept.any() else 0.0


class Collapsed(Exception):
    """Ends an epoch: training should stop, or go on from the last sound one."""

    def __init__(self, event: CatastrophicOverfittingEvent) -> None:
        super().__init__(str(event))
        self.event = event


class CatastrophicOverfittingMonitor:
    """Looks for catastrophic overfitting, remembers the best that each place has seen, and says what to do.

    Args:
        engine: whose run is watched, in eval mode, with every mode and draw kept.
        recipe: how often, on how many images, and the answer to an event.
    """

    def __init__(self, engine: Engine, recipe: Recipe) -> None:
        self.engine, self.recipe = engine, recipe
        self.best: dict[str, float] = {}
        self.spent = 0.0
        self._looks: list[dict[str, float]] = []
        self._events: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._warned: set[str] = set()  # where it is lost and told already

    @cached_property
    def batch(self) -> Batch:
        """The fixed training images, without augmentation."""
        config = self.engine.config
        return sample(config.data.train, self.recipe.watch_examples, seed=config.seed, device=self.engine.device)

    def due(self, step: int, passes: float) -> bool:
        """Whether to look now.

        Args:
            step: steps of this epoch so far, from 1.
            passes: image passes of the run so far.
        """
        if not self.engine.defense.adversarial:
            return False
        if self.recipe.watch_every:
            return step % self.recipe.watch_every == 0
        return self.spent + COST * self.recipe.watch_examples <= SHARE * passes

    def probe(self, epoch: int, step: int) -> str:
        """Clean, FGSM and PGD-10 accuracy and the gradient cosine on the fixed images; returns a line for the bar.

        Args:
            epoch: from 0.
            step: of the epoch, from 1.

        Raises:
            Collapsed: see `judge`.
        """
        started = time.perf_counter()
        with self.engine.counter.paused() as part:
            seen = self._measure()
        self.spent += part.passes
        self._seconds += time.perf_counter() - started
        self._looks.append({"step": step, **{name: round(value, 4) for name, value in seen.items()}})
        self.judge("training", self.batch.targets, seen["clean"], seen["pgd"], epoch, step, seen["fgsm"])
        return f"training images: PGD {seen['pgd']:.1%} FGSM {seen['fgsm']:.1%} gradient cosine {seen['cosine']:.2f}"

    def _measure(self) -> dict[str, float]:
        attacker = self.engine.checker
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
        """Records an event and tells the user; under `warn`, and in the first epoch, that is all.

        Args:
            seen_on: "validation" or "training".
            targets: int64 [N], classes of the images.
            clean, robust, fgsm: accuracies on them, in [0, 1].
            epoch: from 0.
            step: of the epoch from 1; 0 after it.

        Raises:
            Collapsed: the recipe wants more than a warning.
        """
        engine = self.engine
        if not engine.defense.adversarial:
            return
        commonest = targets.bincount().max().item() / len(targets)
        if clean > commonest + LEARNED:
            self.best[seen_on] = max(robust, self.best.get(seen_on, 0.0))
        best = self.best.get(seen_on, 0.0)
        lost = collapsed(robust, best, len(targets), fgsm)
        if engine.accelerator.num_processes > 1:
            lost = bool(broadcast_object_list([lost])[0])  # batch statistics of processes differ within an epoch
        if not lost:
            if robust >= 0.75 * best:
                self._warned.discard(seen_on)
            return
        answer = self.recipe.on_collapse if epoch else "warn"  # nothing to go back to in the first epoch
        if answer in ("restore", "escalate") and engine.rollbacks >= MOST_RETURNS:
            answer = "stop"
        event = CatastrophicOverfittingEvent(epoch + 1, step, seen_on, round(robust, 4), round(best, 4), fgsm, answer)
        if answer == "warn" and self._warned:
            return
        self._warned = self._warned | {seen_on} if answer == "warn" else set()
        self._events.append(event.to_dict())
        engine.display.warn(f"{event}; {ANSWERED[answer]}")
        if answer != "warn":
            raise Collapsed(event)

    def take(self) -> dict[str, Any]:
        """What was seen since the last call, for metrics.jsonl."""
        taken: dict[str, Any] = {"looks": self._looks, "look_seconds": round(self._seconds, 2), "events": self._events}
        self._looks, self._seconds, self._events = [], 0.0, []
        return {name: value for name, value in taken.items() if value}

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best), "spent": self.spent, "warned": sorted(self._warned)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.spent, self._warned = dict(state["best"]), state["spent"], set(state["warned"])
