"""Hooks that a plugin may implement.

pluggy finds and checks the implementations; what they yield is used by ordinary calls, so that no hook runs per batch.
An implementation has no default arguments and is no wrapper; it may take fewer arguments than the hook has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

from timm_robust.plugin.spec import DefenseSpec, DistillerSpec, ModelsSpec, ModifierSpec, RecipeSpec

if TYPE_CHECKING:
    from timm_robust.defense import TrainContext

PROJECT = "timm_robust"
"""Name of the pluggy project, of the markers, and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The hooks; implementations run in the order of their plugins' names."""

    @hookspec
    def timm_robust_defenses(self) -> Iterable[DefenseSpec]:  # type: ignore[empty-body]
        """Yields training methods; called when a method is first listed or looked up, at most once per process.

        Example:
            from timm_robust.plugin import DefenseSpec, Reference, hookimpl

            @hookimpl
            def timm_robust_defenses():
                yield DefenseSpec(
                    name="foo",
                    summary="adversarial training with foo",
                    reference=Reference(title="Foo for robustness", arxiv="2401.00001"),
                    api_version=1,
                    target="timm_robust_foo.foo:Foo",
                    config="timm_robust_foo.options:FooOptions",
                )
        """

    @hookspec
    def timm_robust_modifiers(self) -> Iterable[ModifierSpec]:  # type: ignore[empty-body]
        """Yields modifiers of any method; called with `timm_robust_defenses`, at most once per process.

        Example:
            from timm_robust.plugin import ModifierSpec, Reference, hookimpl

            @hookimpl
            def timm_robust_modifiers():
                yield ModifierSpec(
                    name="bar",
                    summary="perturbs the weights by bar while the loss is computed",
                    reference=Reference(title="Bar for everybody", arxiv="2401.00002"),
                    api_version=1,
                    target="timm_robust_bar.bar:Bar",
                    config="timm_robust_bar.options:BarOptions",
                )
        """

    @hookspec
    def timm_robust_distillers(self) -> Iterable[DistillerSpec]:  # type: ignore[empty-body]
        """Yields distillers of data sets; called with `timm_robust_defenses`, at most once per process.

        Example:
            from timm_robust.plugin import DistillerSpec, Reference, hookimpl

            @hookimpl
            def timm_robust_distillers():
                yield DistillerSpec(
                    name="baz",
                    summary="ten images per class drawn by baz",
                    reference=Reference(title="Baz for small data", arxiv="2401.00003"),
                    api_version=1,
                    target="timm_robust_baz.baz:Baz",
                    config="timm_robust_baz.options:BazOptions",
                )
        """

    @hookspec
    def timm_robust_models(self) -> Iterable[ModelsSpec]:  # type: ignore[empty-body]
        """Yields families of networks that timm lacks; called with `timm_robust_defenses`, at most once per process.

        Example:
            from timm_robust.plugin import ModelsSpec, hookimpl

            @hookimpl
            def timm_robust_models():
                yield ModelsSpec(
                    name="foo-nets",
                    summary="networks with foo blocks",
                    api_version=1,
                    module="timm_robust_foo.networks",  # holds functions under timm's @register_model
                    models=("foo18", "foo50"),
                )
        """

    @hookspec
    def timm_robust_recipes(self) -> Iterable[RecipeSpec]:  # type: ignore[empty-body]
        """Yields recipes, named training settings; called with `timm_robust_defenses`, at most once per process.

        Example:
            from timm_robust.plugin import RecipeSpec, hookimpl

            @hookimpl
            def timm_robust_recipes():
                yield RecipeSpec(
                    name="foo-long",
                    summary="200 epochs, rate 0.1 divided by ten at 50 % and 75 %",
                    source="Foo for robustness, ICML 2024 (released code)",
                    api_version=1,
                    values={"epochs": 200, "schedule": "multistep", "milestones": "0.5,0.75", "lr": 0.1},
                    notes={"lr": "code for CIFAR; SVHN has 0.01"},
                    use="--method foo --recipe foo-long",
                )
        """

    @hookspec
    def timm_robust_run_start(self, run: TrainContext) -> None:
        """Start of a run: called after the model is built, before the first epoch.

        Example:
            from timm_robust.plugin import hookimpl

            @hookimpl
            def timm_robust_run_start(run):
                (run.output / "seed.txt").write_text(f"{run.seed}\\n")
        """

    @hookspec
    def timm_robust_epoch_end(self, run: TrainContext, epoch: int, metrics: Mapping[str, Any]) -> None:
        """End of an epoch: called after its check, with the row of `metrics.jsonl` (`epoch` counts from 0).

        Example:
            from timm_robust.plugin import hookimpl

            @hookimpl
            def timm_robust_epoch_end(epoch, metrics):
                print(epoch, dict(metrics))
        """

    @hookspec
    def timm_robust_run_end(self, run: TrainContext, result: Any) -> None:
        """End of a run: called once after training, not after an error, with one dict of metrics per epoch.

        Example:
            from timm_robust.plugin import hookimpl

            @hookimpl
            def timm_robust_run_end(run, result):
                (run.output / "epochs.txt").write_text(f"{len(result)}\\n")
        """
