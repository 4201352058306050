"""Checks of the settings that plugins declare, in recipes, in recommendations and in commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.plugin.conftest import plugin_of
from timm_robust.errors import PluginError, UserError
from timm_robust.plugin import DefenseSpec, RecipeSpec, Reference, get_manager
from timm_robust.plugin.environment import STRICT
from timm_robust.recipes.check import parse_use, recipe_values, recommended_values
from timm_robust.recipes.presets import all_recipes, make_recipe, recommendations
from timm_robust.testing import ConformanceError, check_recipe


def a_recipe(**changes: Any) -> RecipeSpec:
    values: dict[str, Any] = {"summary": "foo", "source": "our choice", "api_version": 1, "values": {"epochs": 2}}
    return RecipeSpec(**{"name": "foo", **values, **changes})


def a_method(**recommends: Any) -> DefenseSpec:
    return DefenseSpec(
        name="foo",
        summary="does foo",
        reference=Reference(title="Foo"),
        api_version=1,
        target="foo:Foo",
        config="foo:FooOptions",
        recommends=recommends,
    )


BAD = [
    ({"epoch": 3}, "{} 'epoch', which is no recipe setting: did you mean epochs?"),
    ({"warp": 9}, "{} 'warp', which is no recipe setting"),
    ({"lr": -1}, "{} a bad value: recipe setting 'lr' is -1.0: expected at least 0"),
    ({"schedule": "cosin"}, "{} a bad value: recipe setting 'schedule' is 'cosin': did you mean cosine?"),
]


@pytest.mark.parametrize(("values", "complaint"), BAD)
def test_bad_settings(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PluginError) as caught:
        recipe_values(a_recipe(values=values))
    assert str(caught.value).startswith(complaint.format("recipe 'foo' sets"))
    with pytest.raises(PluginError) as caught:
        recommended_values(a_method(**values))
    assert str(caught.value).startswith(complaint.format("method 'foo' recommends"))


def test_settings_in_their_types() -> None:
    values = recipe_values(a_recipe(values={"epochs": 2.0, "lr": "1/10", "milestones": 0.5}))
    assert values == {"epochs": 2, "lr": 0.1, "milestones": "0.5"} and type(values["epochs"]) is int
    assert recommended_values(a_method(activation="silu", epochs="3")) == ({"epochs": 3}, "silu")


def test_peak_at_the_end_of_a_cycle() -> None:
    with pytest.raises(PluginError, match="recipe 'foo' sets a bad value: recipe setting 'peak' is 0: expected"):
        recipe_values(a_recipe(values={"peak": 0.0}))


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """Registers specs as those of an installed `timm-robust-foo 0.2`."""
    manager = get_manager()
    failures = list(manager.failures)

    def add(spec: Any, hook: str = "timm_robust_recipes") -> None:
        manager.register(plugin_of(spec, hook=hook), name="foo", distribution="timm-robust-foo", version="0.2")

    yield add
    manager.unregister("foo")
    manager.failures = failures


def test_the_sentence_names_the_distribution_and_no_other_recipe_suffers(register: Callable[..., None]) -> None:
    register(a_recipe(values={"epoch": 3}))
    with pytest.raises(UserError) as caught:
        make_recipe("foo", {}, {})
    assert str(caught.value) == (
        "recipe 'foo' comes from timm-robust-foo 0.2, which failed at check: recipe 'foo' sets 'epoch', which is no "
        f"recipe setting: did you mean epochs? ({STRICT}=1 shows where)"
    )
    assert make_recipe("rice", {}, {}).epochs == 200
    with pytest.raises(ConformanceError, match="recipe 'foo' sets 'epoch', which is no recipe setting"):
        check_recipe("foo")


def test_strict_mode_raises(register: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    register(a_recipe(values={"epoch": 3}))
    monkeypatch.setattr(get_manager(), "strict", True)
    with pytest.raises(PluginError, match=r"^timm-robust-foo 0.2 failed at check: recipe 'foo' sets 'epoch'"):
        make_recipe("foo", {}, {})


def test_recommendations_name_the_distribution(register: Callable[..., None]) -> None:
    register(a_method(lr=-1), hook="timm_robust_defenses")
    with pytest.raises(UserError) as caught:
        recommendations(get_manager().defense("foo"))
    assert str(caught.value).startswith(
        "method 'foo' comes from timm-robust-foo 0.2, which failed at check: method 'foo' recommends a bad value: "
        "recipe setting 'lr' is -1.0: expected at least 0"
    )


@pytest.mark.parametrize("name", sorted(all_recipes()))
def test_every_recipe_passes_its_conformance_check(name: str) -> None:
    check_recipe(name)


@pytest.mark.parametrize(
    ("use", "complaint"),
    [
        ("--method pgd", "does not name it: expected --recipe foo"),
        ("--method pgd --recipe bar", "does not name it: expected --recipe foo"),
        ("pgd --recipe foo", "begins with 'pgd': expected an option such as --method"),
        ("--metod pgd --recipe foo", "has '--metod': expected some of --method, "),
        ("--method pdg --recipe foo", "is not valid: unknown method 'pdg': did you mean pgd"),
        ("--method pgd -o step=3 --recipe foo", "is not valid: unknown option 'step': did you mean steps"),
        ("--method pgd -o steps --recipe foo", "is not valid: 'steps' is no assignment: expected name=value"),
        ("--method pgd --modifier awq --recipe foo", "is not valid: unknown modifier 'awq': did you mean awp"),
        ("--method pgd --modifier awp -o awp.gama=1 --recipe foo", "is not valid: unknown option 'gama'"),
        (
            "--method pgd -o awp.gamma=1 --recipe foo",
            "is not valid: option 'gamma' belongs to no method or",
        ),
        ("-o steps=3 --recipe foo", "is not valid: option 'steps' belongs to no method or modifier in it: "),
        ("--method 'pgd --recipe foo", "is not valid: No closing quotation"),
        ("--method pgd --recipe foo --set epoch=3", "sets 'epoch', which is no recipe setting"),
    ],
)
def test_commands_that_cannot_be_typed(use: str, complaint: str) -> None:
    with pytest.raises(PluginError) as caught:
        parse_use(a_recipe(use=use))
    assert str(caught.value).startswith(f"use of recipe 'foo' {complaint}")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schedule": "multistep", "milestones": "0.5,x"}, "expected increasing shares"),
        ({"check_attack": "pgd-ten"}, "pgd-ten"),
        ({"use": "--recipe foo --activation silo"}, "silo"),
    ],
)
def test_texts_inside_settings_are_parsed(
    register: Callable[..., None], changes: dict[str, Any], complaint: str
) -> None:
    values = {name: value for name, value in changes.items() if name != "use"}
    register(a_recipe(values=values, use=changes.get("use", "")))
    with pytest.raises(ConformanceError, match=complaint):
        check_recipe("foo")
