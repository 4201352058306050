"""Conformance suite: what every method and recipe must do, in-tree or third-party.

    from timm_robust.testing import parametrize_with_checks

    @parametrize_with_checks("my-method")
    def test_conformance(check):
        check()

Checks have stable names; `check_method("my-method")` runs all of them outside pytest, and `check_recipe("my-recipe")`
checks one recipe, for a plugin without a method. One file, so that an author finds every rule in one place.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_robust.attacks.attacker import Attacker
from timm_robust.data.batch import Batch, View
from timm_robust.defense import Defense, Perturbed, StepOutput, TrainContext
from timm_robust.errors import PluginError, UserError
from timm_robust.evaluation.attack_spec import parse_attack
from timm_robust.models.activations import canonical_name
from timm_robust.models.factory import build_like, build_model
from timm_robust.models.pixel_model import PixelModel
from timm_robust.options import describe, parse_options, to_dict
from timm_robust.plugin import get_manager
from timm_robust.recipes.check import parse_use, recipe_values
from timm_robust.recipes.presets import all_recipes, find_recipe, make_recipe, recommendations
from timm_robust.threat import make_threat
from timm_robust.training.optim import Schedule

IMAGE_SIZE = 16

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn": ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}),
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 24, "depth": 2, "num_heads": 2}),
    "without-batchnorm": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
}
"""Small networks of three kinds, by what makes them different for a method."""


class ConformanceError(AssertionError):
    """A method does not do what every method must."""


def _require(truth: bool, complaint: str) -> None:
    if not truth:
        raise ConformanceError(complaint)


@dataclass
class Bench:
    """A method on a small network with one batch of random images."""

    defense: Defense
    model: PixelModel
    run: TrainContext
    batch: Batch

    @classmethod
    def make(
        cls,
        method: str,
        *,
        network: str = "cnn",
        num_classes: int = 10,
        images: int = 16,
        epochs: int = 2,
        method_args: Any = None,
        autocast: Any = None,
    ) -> Bench:
        """Builds everything from a fixed seed."""
        torch.manual_seed(0)
        manager = get_manager()
        manager.register_models()
        found = manager.defense(method)
        options = parse_options(manager.load_config(method), method_args or {}, owner=f"method {method!r}")
        recommends, activation = recommendations(found)
        name, kwargs = NETWORKS[network]
        model = build_model(
            name,
            num_classes=num_classes,
            image_size=IMAGE_SIZE,
            model_kwargs=kwargs,
            activation=activation,
            data_mean=[0.5] * 3,
            data_std=[0.25] * 3,
        )
        threat = make_threat(image_size=IMAGE_SIZE)
        attacker = Attacker(model, threat) if autocast is None else Attacker(model, threat, autocast=autocast)
        pixels = torch.rand(images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
        corner, side = torch.arange(images) % 5, torch.full((images,), IMAGE_SIZE)
        view = View(corner, corner.flip(0), side, side, corner % 2 == 0)
        batch = Batch(pixels, torch.arange(images) % num_classes, torch.arange(images), view)
        run = TrainContext(
            model=model,
            unwrapped_model=model,
            attacker=attacker,
            threat=threat,
            recipe=make_recipe("default", recommends, {}),
            num_classes=num_classes,
            num_train=images,
            image_size=IMAGE_SIZE,
            device=torch.device("cpu"),
            epochs=epochs,
            steps_per_epoch=10,
            seed=0,
            output=Path(tempfile.gettempdir()),
            frame_size=IMAGE_SIZE + 4,
            unaugmented=lambda: [batch],
        )
        defense = manager.load_target(method)(options)
        run.teachers = {option: build_like(model).requires_grad_(False).eval() for option in found.spec.teachers}
        run.auxiliary_model = defense.auxiliary_model(partial(build_like, model))
        defense.setup(run)
        defense.on_epoch_start(0)
        model.train()
        return cls(defense, model, run, defense.augment(batch))

    def step(self, seed: int = 0) -> tuple[Perturbed, StepOutput]:
        """Perturb and loss, from a fixed seed."""
        torch.manual_seed(seed)
        perturbed = self.defense.perturb(self.batch)
        return perturbed, self.defense.loss(self.batch, perturbed)

    def train(self, steps: int, lr: float = 0.05) -> list[float]:
        """Full steps with plain SGD; returns the losses."""
        auxiliary_model = self.run.auxiliary_model.parameters() if self.run.auxiliary_model else ()
        optimizer = torch.optim.SGD([*self.model.parameters(), *auxiliary_model], lr=lr, momentum=0.9)
        losses = []
        for number in range(steps):
            perturbed, output = self.step(number)
            optimizer.zero_grad()
            output["loss"].backward()
            optimizer.step()
            self.defense.commit(self.batch, perturbed, output)
            losses.append(output["loss"].item())
        return losses


def check_options_documented(method: str) -> None:
    """Each option says what it means and where its default comes from."""
    for option in describe(get_manager().load_config(method)):
        _require(bool(option.help), f"option {option.name!r} of {method!r} has no help")
        _require(bool(option.source), f"option {option.name!r} of {method!r} has no source")


def check_options_round_trip(method: str) -> None:
    """Options come back from JSON as they were."""
    config = get_manager().load_config(method)
    options = config()
    again = parse_options(config, json.loads(json.dumps(to_dict(options))), owner=method)
    _require(again == options, f"options of {method!r} change on the way through JSON: {options} became {again}")


def check_card(method: str) -> None:
    """The package of the method holds a card README.md that names its reference."""
    spec = get_manager().defense(method).spec
    found = importlib.util.find_spec(spec.target.partition(":")[0].rpartition(".")[0] or spec.target.partition(":")[0])
    folder = Path(found.origin).parent if found and found.origin else None
    card = folder / "README.md" if folder else None
    _require(card is not None and card.is_file(), f"{method!r} has no card: expected a README.md beside its code")
    text = card.read_text() if card else ""
    reference = spec.reference
    needle = (reference.arxiv or reference.title) if reference else method
    _require(needle in text, f"the card of {method!r} does not name its reference {needle!r}")


def check_recommendations(method: str) -> None:
    """The recipe settings that the method recommends exist and are inside their bounds."""
    try:
        recommendations(get_manager().defense(method))
    except (PluginError, UserError) as error:
        raise ConformanceError(str(error)) from None


def check_recipes(method: str) -> None:
    """Each recipe of the method's plugin is valid, as `check_recipe` says."""
    plugin = get_manager().defense(method).plugin
    for name, found in all_recipes().items():
        if found.plugin == plugin:
            check_recipe(name)


def check_listing_is_light(method: str) -> None:
    """Describing the method imports neither torch nor timm."""
    code = (
        "import sys; from timm_robust.plugin import get_manager; m = get_manager(); "
        f"m.load_config({method!r}); sys.exit(bool({{'torch', 'timm', 'torchattacks'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    _require(done.returncode == 0, f"listing {method!r} imports torch or fails: {done.stderr.strip()[-300:]}")


def check_finite_loss(method: str) -> None:
    """One step gives a finite scalar loss with a gradient, and logits of the batch where it gives logits."""
    bench = Bench.make(method)
    _, output = bench.step()
    loss = output["loss"]
    _require(loss.ndim == 0 and loss.requires_grad and bool(loss.isfinite()), f"loss of {method!r} is {loss}")
    if "logits" in output:
        shape = tuple(output["logits"].shape)
        _require(shape == (16, 10), f"logits of {method!r} have shape {shape}: expected (16, 10)")


def check_gradient_everywhere(method: str) -> None:
    """The loss reaches every trainable parameter."""
    bench = Bench.make(method)
    bench.step()[1]["loss"].backward()
    missing = [name for name, p in bench.model.named_parameters() if p.requires_grad and p.grad is None]
    _require(not missing, f"no gradient reaches {missing[:3]} with {method!r}")


def check_threat_kept(method: str) -> None:
    """Adversarial images lie in [0, 1] and in the ball, or as far outside as the method's `eps_multiplier` says."""
    bench = Bench.make(method)
    images = bench.step()[0].images.detach()
    far, radius = (images - bench.batch.images).abs().max().item(), bench.defense.eps_multiplier * bench.run.threat.eps
    _require(far <= radius + 1e-6, f"{method!r} leaves the ball: {far:g} > {radius:g}")
    _require(bool((images >= 0).all() and (images <= 1).all()), f"{method!r} leaves the pixel range")


def check_inputs_untouched(method: str) -> None:
    """Neither images nor targets are changed in place."""
    bench = Bench.make(method)
    before = [bench.batch.images.clone(), bench.batch.targets.clone(), bench.batch.index.clone()]
    bench.train(1)
    after = [bench.batch.images, bench.batch.targets, bench.batch.index]
    _require(all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), f"{method!r} writes into its batch")


def check_modes_restored(method: str) -> None:
    """After perturb, each module's mode and each parameter's requires_grad are as before, frozen ones too."""
    bench = Bench.make(method)
    norm = next(module for module in bench.model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.eval()
    frozen = next(bench.model.parameters()).requires_grad_(False)
    modes = [module.training for module in bench.model.modules()]
    bench.defense.perturb(bench.batch)
    _require(modes == [module.training for module in bench.model.modules()], f"{method!r} changes modules' modes")
    _require(not frozen.requires_grad, f"{method!r} un-freezes a frozen parameter")
    _require(
        all(p.requires_grad for p in bench.model.parameters() if p is not frozen), f"{method!r} freezes parameters"
    )


def check_perturb_leaves_no_gradient(method: str) -> None:
    """Crafting writes no `.grad` into the parameters and keeps no graph."""
    bench = Bench.make(method)
    images = bench.defense.perturb(bench.batch).images
    _require(images.grad_fn is None, f"images of {method!r} carry a graph")
    _require(
        all(p.grad is None for p in bench.model.parameters()), f"{method!r} fills weight gradients while attacking"
    )


def check_loss_writes_nothing(method: str) -> None:
    """`perturb` and `loss` leave the method's own state alone, and `loss` gives the same twice."""
    bench = Bench.make(method)
    bench.train(2)
    bench.model.eval()  # batch statistics aside
    before = copy.deepcopy(bench.defense.state_dict())
    torch.manual_seed(0)
    perturbed = bench.defense.perturb(bench.batch)
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        losses.append(bench.defense.loss(bench.batch, perturbed)["loss"].item())
    _require(losses[0] == losses[1], f"loss of {method!r} is {losses[0]} and then {losses[1]} on the same batch")
    _require(_equal(before, bench.defense.state_dict()), f"perturb or loss of {method!r} writes its state")


def check_deterministic(method: str) -> None:
    """Equal seeds give equal weights."""
    ends = []
    for _ in range(2):
        bench = Bench.make(method)
        bench.train(3)
        ends.append(torch.cat([p.detach().flatten() for p in bench.model.parameters()]))
    _require(torch.equal(*ends), f"{method!r} gives different weights under equal seeds")


def check_loss_falls(method: str) -> None:
    """Thirty steps on sixteen images bring the loss down, early in a run: later the labels themselves may soften."""
    losses = Bench.make(method, epochs=20).train(30)
    start, end = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    _require(end < 0.9 * start, f"loss of {method!r} went from {start:.3f} to {end:.3f} in 30 steps on 16 images")


def check_state_round_trip(method: str) -> None:
    """State survives saving without pickled code, and a resumed method steps like the original."""
    bench = Bench.make(method)
    bench.train(2)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.pt"
        torch.save(bench.defense.state_dict(), file)
        state = torch.load(file, weights_only=True)
    other = Bench.make(method)
    other.model.load_state_dict(bench.model.state_dict())
    if bench.run.auxiliary_model and other.run.auxiliary_model:
        other.run.auxiliary_model.load_state_dict(bench.run.auxiliary_model.state_dict())
    other.defense.load_state_dict(state)
    _require(_equal(bench.defense.state_dict(), other.defense.state_dict()), f"state of {method!r} does not come back")
    one, two = bench.step()[1]["loss"], other.step()[1]["loss"]
    _require(torch.equal(one, two), f"{method!r} steps differently after resuming: {one.item()} and {two.item()}")


def check_model_stays_plain(method: str) -> None:
    """The method adds nothing to the network's state dict, so that a checkpoint loads without it."""
    bench = Bench.make(method)
    before = set(bench.model.state_dict())
    bench.train(1)
    _require(set(bench.model.state_dict()) == before, f"{method!r} adds entries to the network's state dict")


def check_few_classes(method: str) -> None:
    """Two classes work."""
    losses = Bench.make(method, num_classes=2).train(2)
    _require(all(map(_finite, losses)), f"{method!r} fails with 2 classes: {losses}")


def check_vision_transformer(method: str) -> None:
    """A transformer works."""
    losses = Bench.make(method, network="vit").train(2)
    _require(all(map(_finite, losses)), f"{method!r} fails on a vision transformer: {losses}")


def check_without_batchnorm(method: str) -> None:
    """A network without BatchNorm works."""
    losses = Bench.make(method, network="without-batchnorm").train(2)
    _require(all(map(_finite, losses)), f"{method!r} fails without BatchNorm: {losses}")


def check_mixed_precision(method: str) -> None:
    """A step under bfloat16 autocast is finite, and its images keep float32 and the threat."""

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    bench = Bench.make(method, autocast=autocast)
    perturbed = bench.defense.perturb(bench.batch)
    with autocast():
        loss = bench.defense.loss(bench.batch, perturbed)["loss"]
    loss.backward()
    _require(bool(loss.isfinite()), f"loss of {method!r} under bfloat16 is {loss.item()}")
    _require(
        perturbed.images.dtype == torch.float32, f"images of {method!r} under bfloat16 are {perturbed.images.dtype}"
    )


CHECKS: dict[str, Callable[[str], None]] = {
    name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")
}
"""Every check by its stable name; each takes a method's name and raises `ConformanceError`."""


def check_method(method: str) -> None:
    """Runs every check on one method.

    Raises:
        ConformanceError: the first complaint.
    """
    for check in CHECKS.values():
        check(method)


def check_recipe(name: str) -> None:
    """Values of a recipe are settings inside their bounds, its schedule and check attack parse, its `use` can be typed.

    Raises:
        ConformanceError: the first complaint.
    """
    spec = find_recipe(name).spec
    try:
        recipe_values(spec)
        for activation in parse_use(spec).get("--activation", []):
            canonical_name(activation)
        recipe = make_recipe(name, {}, {})
        Schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr), recipe, steps_per_epoch=1)
        parse_attack(recipe.check_attack)
    except (PluginError, UserError) as error:
        raise ConformanceError(str(error)) from None


def parametrize_with_checks(*methods: str, expected_failures: dict[str, str] | None = None) -> Any:
    """A pytest decorator: the test gets `check`, a callable without arguments, for each method and check.

    Args:
        methods: names; by default every registered method.
        expected_failures: reason by the name of a check that is known to fail.
    """
    import pytest  # needed by authors of plugins only

    names = methods or tuple(sorted(get_manager().defenses()))
    reasons = expected_failures or {}

    def cases() -> Iterator[Any]:
        for method in names:
            for name, check in CHECKS.items():
                marks = [pytest.mark.xfail(reason=reasons[name], strict=True)] if name in reasons else []
                yield pytest.param(_Bound(check, method), id=f"{method}-{name}", marks=marks)

    return pytest.mark.parametrize("check", list(cases()))


@dataclass(frozen=True)
class _Bound:
    check: Callable[[str], None]
    method: str

    def __call__(self) -> None:
        self.check(self.method)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(_equal(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(_equal, one, two))
    return bool(one == two)
