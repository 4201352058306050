"""Options: one declaration, everything else derived."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Optional

import pytest

from timm_robust.errors import PluginError, UserError
from timm_robust.options import PGDSettings, check_options_class, check_value, describe, parse_options, to_dict
from timm_robust.plugin import Options, bn_option, option, start_option, step_option, steps_option
from timm_robust.plugin.manager import PluginManager
from timm_robust.recipes.presets import make_recipe
from timm_robust.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Demo(Options):
    steps: int = option(10, help="attack steps", low=1, source="paper, section 5")
    share: float = option(0.5, help="a share", low=0.0, high=1.0)
    decay: float | None = option(None, help="a decay", unit="per epoch", high=1.0)
    nesterov: bool = option(True, help="look ahead")
    name: str = option("a", help="a name")
    attack_bn: str = bn_option("eval", source="released code")


FIELDS = {field.name: field for field in fields(Demo)}


OWNER = "method 'demo'"


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("steps", 7, 7), ("steps", "7", 7), ("steps", 7.0, 7), ("steps", " 7 ", 7),
        ("share", 1, 1.0), ("share", "8/255", 8 / 255), ("share", " 8 / 255 ", 8 / 255), ("share", "1e-3", 1e-3),
        ("share", Fraction(1, 4), 0.25),
        ("decay", None, None), ("decay", "none", None), ("decay", "None", None), ("decay", "0.5", 0.5),
        ("decay", -1, -1.0),
        ("nesterov", "true", True), ("nesterov", "No", False), ("nesterov", 0, False), ("nesterov", "1", True),
        ("nesterov", False, False),
        ("name", "none", "none"), ("name", 0.5, "0.5"), ("name", " b ", "b"),
        ("attack_bn", "train", "train"),
    ],
)  # fmt: skip
def test_values(name: str, given: Any, value: Any) -> None:
    parsed = check_value(FIELDS[name], given)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("steps", 0, "option 'steps' of method 'demo' is 0: expected at least 1"),
        ("steps", "0", "option 'steps' of method 'demo' is 0: expected at least 1"),
        ("steps", 1.5, "option 'steps' of method 'demo' is 1.5: expected an integer"),
        ("steps", True, "option 'steps' of method 'demo' is True: expected an integer"),
        ("steps", None, "option 'steps' of method 'demo' is None: expected an integer"),
        ("steps", "ten", "option 'steps' of method 'demo' is 'ten': expected an integer"),
        ("steps", [1], "option 'steps' of method 'demo' is [1]: expected an integer"),
        ("share", 2, "option 'share' of method 'demo' is 2.0: expected 0 to 1"),
        ("share", "nan", "option 'share' of method 'demo' is 'nan': expected a number or a fraction like 8/255"),
        ("share", "inf", "option 'share' of method 'demo' is 'inf': expected a number or a fraction like 8/255"),
        ("share", "1/0", "option 'share' of method 'demo' is '1/0': expected a number or a fraction like 8/255"),
        ("share", "8//255", "option 'share' of method 'demo' is '8//255': expected a number or a fraction like 8/255"),
        ("decay", 2, "option 'decay' of method 'demo' is 2.0: expected at most 1"),
        ("decay", "x", "option 'decay' of method 'demo' is 'x': expected a number or a fraction like 8/255 or none"),
        ("nesterov", "maybe", "option 'nesterov' of method 'demo' is 'maybe': expected true or false"),
        ("name", True, "option 'name' of method 'demo' is True: expected text"),
        ("attack_bn", "trian",
         "option 'attack_bn' of method 'demo' is 'trian': did you mean train? (expected one of eval, train, frozen)"),
        ("attack_bn", "xyz", "option 'attack_bn' of method 'demo' is 'xyz': expected one of eval, train, frozen"),
        ("stepz", 3,
         "unknown option 'stepz': did you mean steps? (known: attack_bn, decay, name, nesterov, share, steps) "
         "(options of method 'demo')"),
    ],
)  # fmt: skip
def test_messages(name: str, given: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_options(Demo, {name: given}, owner=OWNER)
    assert str(caught.value) == message


def test_method_without_options() -> None:
    assert parse_options(Options, {}, owner="method 'standard'") == Options()
    with pytest.raises(UserError, match=r"^unknown option 'steps': method 'standard' has no options$"):
        parse_options(Options, {"steps": 3}, owner="method 'standard'")


def test_recipe_speaks_of_settings() -> None:
    with pytest.raises(UserError, match=r"^recipe setting 'schedule' is 'cosin': did you mean cosine\? "):
        make_recipe("default", {}, {"schedule": "cosin"})


def test_round_trip() -> None:
    options = parse_options(Demo, {"steps": "3", "share": "1/4", "decay": "none", "nesterov": "no"}, owner=OWNER)
    assert to_dict(options) == {
        "steps": 3, "share": 0.25, "decay": None, "nesterov": False, "name": "a", "attack_bn": "eval",
    }  # fmt: skip
    assert parse_options(Demo, to_dict(options), owner=OWNER) == options
    as_typed = {name: str(value) for name, value in to_dict(options).items()}
    assert parse_options(Demo, as_typed, owner=OWNER) == options


def test_describe() -> None:
    infos = {info.name: info for info in describe(Demo)}
    assert list(infos) == list(FIELDS)
    steps = infos["steps"]
    assert (steps.type, steps.default, steps.unit, steps.range, steps.help, steps.source) == (
        "int", 10, "", "at least 1", "attack steps", "paper, section 5",
    )  # fmt: skip
    assert (infos["decay"].type, infos["decay"].unit, infos["decay"].range) == (
        "float | None",
        "per epoch",
        "at most 1",
    )
    assert (infos["share"].range, infos["attack_bn"].range) == ("0 to 1", "eval, train, frozen")


@pytest.mark.parametrize(
    ("annotation", "type_", "given", "value"),
    [(int, "int", "3", 3), (int | None, "int | None", "none", None), (Optional[float], "float | None", "1/2", 0.5),
     ("Optional[int]", "int | None", None, None), ("None | str", "str | None", "x", "x")],
)  # fmt: skip
def test_evaluated_annotations(annotation: Any, type_: str, given: Any, value: Any) -> None:
    body = {"__annotations__": {"knob": annotation}, "knob": option(1, help="a knob")}
    cls = dataclass(frozen=True, kw_only=True)(type("Evaluated", (Options,), body))
    assert describe(cls)[0].type == type_
    assert parse_options(cls, {"knob": given}, owner=OWNER).knob == value  # type: ignore[attr-defined]


def check_class(body: dict[str, Any], *, frozen: bool = True, kw_only: bool = True) -> None:
    base: Any = Options if frozen else object
    cls = dataclass(frozen=frozen, kw_only=kw_only)(type("Bad", (base,), body))
    check_options_class(cls, owner=OWNER)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"__annotations__": {"x": "list[int]"}, "x": option(1, help="x")},
         "option 'x' has type 'list[int]': expected one of int, float, bool, str, or X | None"),
        ({"__annotations__": {"x": "int"}, "x": 3},
         "option 'x' of method 'demo' is not complete: "
         "expected @dataclass(kw_only=True) and option(default, help=...)"),
        ({"__annotations__": {"x": "int"}, "x": option(0, help="x", low=1)},
         "default of option 'x' of method 'demo' is 0: expected at least 1"),
        ({"__annotations__": {"x": "int"}, "x": option("a", help="x")},
         "default of option 'x' of method 'demo' is 'a': expected an integer"),
    ],
)  # fmt: skip
def test_bad_classes(body: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError) as caught:
        check_class(body)
    assert str(caught.value) == message


def test_other_bad_classes() -> None:
    with pytest.raises(PluginError, match=r"^Bad of method 'demo' is not an options class: "):
        check_class({}, frozen=False)
    with pytest.raises(PluginError, match=r"^option 'x' of method 'demo' is not complete: "):
        check_class({"__annotations__": {"x": "int"}, "x": option(1, help="x")}, kw_only=False)

    class Undecorated(Options):
        pass

    with pytest.raises(PluginError, match=r"^Undecorated of method 'demo' is not an options class: "):
        check_options_class(Undecorated, owner=OWNER)
    with pytest.raises(PluginError, match=r"^3 of method 'demo' is not an options class: "):
        check_options_class(3, owner=OWNER)


def test_recipe_settings_are_documented() -> None:
    assert [info.name for info in describe(Recipe) if not info.help] == []


def test_shipped_options() -> None:
    """Loading checks them; every default must say where it comes from."""
    manager = PluginManager()
    eval_model = pytest.importorskip("timm_robust_plugins")
    for folder in Path(eval_model.__path__[0]).iterdir():
        if (folder / "plugin.py").exists():
            plugin = importlib.import_module(f"timm_robust_plugins.{folder.name}.plugin")
            manager.register(plugin, name=folder.name)
    assert "pgd" in manager.defenses()
    for name in manager.defenses():
        assert [info.name for info in describe(manager.load_config(name)) if not info.source] == []


@dataclass(frozen=True, kw_only=True)
class Attacked(Options):
    steps: int = steps_option(7, source="paper")
    step_ratio: float = step_option(source="paper")
    random_start: bool = start_option(False, source="paper")
    weight: float = option(2.0, help="a weight")


def test_options_of_attacks() -> None:
    rows = {info.name: (info.default, info.unit, info.range, info.source) for info in describe(Attacked)}
    assert rows["steps"] == (7, "", "at least 1", "paper")
    assert rows["step_ratio"] == (0.25, "eps", "at least 0", "paper")
    assert rows["random_start"] == (False, "", "", "paper")


def test_declared_options_replace_the_settings_of_pgd() -> None:
    assert PGDSettings.from_options(Options()) == PGDSettings()
    found = PGDSettings.from_options(parse_options(Attacked, {"step_ratio": 0.5}, owner=OWNER))
    assert found == PGDSettings(steps=7, step_ratio=0.5, random_start=False, attack_bn="eval")
