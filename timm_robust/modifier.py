"""The contract of a modifier, which composes with any defense: around the update and after it.

    with modifier.weights(loss):                     # may move the weights; restores them on exit
        output = defense.loss(batch, perturbed); backward
    optimizer step
    modifier.after_step()                            # such as averaging weights
    ... epoch ...
    modifier.on_epoch_end(epoch)

A defense knows nothing of modifiers. Weight perturbation is one, and so is weight averaging: a modifier may provide
another network than the trained one, which is then checked, saved and evaluated in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from timm.utils import ModelEmaV3
from torch import Tensor

from timm_robust.errors import UserError
from timm_robust.models.pixel_model import PixelModel

if TYPE_CHECKING:
    from timm_robust.defense import TrainContext
    from timm_robust.options import Options


class Modifier:
    """Base class of modifiers; does nothing.

    Args:
        options: frozen options of the modifier.
    """

    run: TrainContext

    def __init__(self, options: Options | None = None) -> None:
        self.options = options

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.options})"

    def eval_model(self, model: PixelModel) -> PixelModel | None:
        """Network to check, save and evaluate in place of the trained one; None for the trained one itself.

        Called once, before `setup`, with the trained network on its device.
        """
        return None

    def setup(self, run: TrainContext) -> None:
        """Called once, after the defense's `setup` and before the first epoch."""
        self.run = run

    def weights(self, loss: Callable[[], Tensor]) -> AbstractContextManager[None]:
        """Context around the update's loss and backward pass; on exit the weights must be as they were.

        Args:
            loss: computes the update's loss on this batch, with its graph; it may be called, and changes nothing but
                BatchNorm's statistics, for which see `timm_robust.attacks.attack_mode.frozen_statistics`.
        """
        return nullcontext()

    def after_step(self) -> None:
        """Called after each optimizer step."""

    def on_epoch_start(self, epoch: int) -> None:
        """Called before the first batch of `epoch` (from 0)."""

    def on_epoch_end(self, epoch: int) -> None:
        """Called after the last batch of `epoch` (from 0), before the check on the validation split."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs, as tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""


class MovingAverage(Modifier):
    """Exponential moving average of the weights, which is evaluated in their place: the recipe's `ema`.

    Args:
        decay: factor of the old average at each step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def eval_model(self, model: PixelModel) -> PixelModel:
        self.average, self.steps = ModelEmaV3(model, decay=self.decay), 0
        return self.average.module

    def after_step(self) -> None:
        self.steps += 1
        self.average.update(self.run.unwrapped_model, step=self.steps)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.average.module.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.module.load_state_dict(state["weights"])
        self.steps = state["steps"]


class Modifiers:
    """All modifiers of a run, in the given order.

    Args:
        given: modifiers by name.
        model: trained network, on its device.

    Attributes:
        eval_model: network to check, save and evaluate; `model` itself unless a modifier provides another.

    Raises:
        UserError: two of them provide one.
    """

    def __init__(self, given: Mapping[str, Modifier], model: PixelModel) -> None:
        self._given = dict(given)
        self.eval_model, owner = model, ""
        for name, modifier in self._given.items():
            if (other := modifier.eval_model(model)) is not None:
                if owner:
                    raise UserError(f"{owner!r} and {name!r} both average the weights: choose one of them")
                self.eval_model, owner = other, name

    def setup(self, run: TrainContext) -> None:
        for modifier in self._given.values():
            modifier.setup(run)

    @contextmanager
    def weights(self, loss: Callable[[], Tensor]) -> Iterator[None]:
        with ExitStack() as stack:
            for modifier in self._given.values():
                stack.enter_context(modifier.weights(loss))
            yield

    def after_step(self) -> None:
        for modifier in self._given.values():
            modifier.after_step()

    def on_epoch_start(self, epoch: int) -> None:
        for modifier in self._given.values():
            modifier.on_epoch_start(epoch)

    def on_epoch_end(self, epoch: int) -> None:
        for modifier in self._given.values():
            modifier.on_epoch_end(epoch)

    def state_dict(self) -> dict[str, Any]:
        return {name: modifier.state_dict() for name, modifier in self._given.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, modifier in self._given.items():
            modifier.load_state_dict(state[name])
