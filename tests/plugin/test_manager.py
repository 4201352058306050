"""The manager: what strangers may get wrong, and what the user reads then."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.conftest import GOOD, Install, plugin_of
from tests.support import discover
from timm_robust.errors import PluginError, UserError
from timm_robust.plugin import DefenseSpec, ModelsSpec, RecipeSpec, Reference, get_manager, hookimpl
from timm_robust.plugin.environment import DISABLE, LOAD, STRICT
from timm_robust.plugin.errors import PluginConflict
from timm_robust.plugin.manager import PluginManager

OTHER = GOOD.replace("spec()", "spec('bar')")


def make_spec(**changes: Any) -> DefenseSpec:
    values: dict[str, Any] = {
        "name": "foo",
        "summary": "does foo",
        "reference": Reference(title="Foo", arxiv="2401.00001"),
        "api_version": 1,
        "target": "foo_code:Foo",
        "config": "foo_code:FooOptions",
    }
    return DefenseSpec(**{**values, **changes})


def make_recipe_spec(name: str = "foo-quick", **changes: Any) -> RecipeSpec:
    values: dict[str, Any] = {
        "summary": "two epochs",
        "source": "our choice",
        "api_version": 1,
        "values": {"epochs": 2},
    }
    return RecipeSpec(**{"name": name, **values, **changes})


def test_installed_plugin(install: Install) -> None:
    install()
    manager = discover()
    found = manager.defense("foo")
    assert (found.spec.name, found.plugin, found.distribution, found.version) == (
        "foo",
        "foo",
        "timm-robust-foo",
        "0.2",
    )
    assert found.origin == "timm-robust-foo 0.2"
    method = {
        "name": "foo",
        "kind": "defense",
        "summary": "does foo",
        "reference": "Foo",
        "distribution": "timm-robust-foo",
        "version": "0.2",
        "status": "active",
        "error": "",
    }
    assert manager.method_rows() == [method]
    assert manager.report() == [method | {"api_version": 1, "hooks": ["timm_robust_defenses"], "offers": ["foo"]}]
    assert manager.failures == []
    # listing imports neither the code nor the options of a method
    assert not [name for name in sys.modules if name.endswith("foo_code")]


@pytest.mark.parametrize(
    ("code", "stage", "error"),
    [
        ("import no_such_module", "import", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "import", "SystemExit: 3"),
        ("raise RuntimeError('two\\nlines')", "import", "RuntimeError: two lines"),
        (
            "@hookimpl\ndef timm_robust_defences(): yield spec()",
            "register",
            "unknown hook 'timm_robust_defences': did you mean timm_robust_defenses?",
        ),
        (
            "def timm_robust_defenses(): yield spec()",
            "register",
            "no hook found: expected a function under @hookimpl with a name like timm_robust_defenses",
        ),
        (
            "@hookimpl\ndef timm_robust_epoch_end(run, epoch=0): pass",
            "register",
            "hook 'timm_robust_epoch_end' has a default for 'epoch': expected none",
        ),
        (
            "@hookimpl\ndef timm_robust_epoch_end(*args): pass",
            "register",
            "hook 'timm_robust_epoch_end' takes *args: expected arguments by name",
        ),
        (
            "@hookimpl\ndef timm_robust_epoch_end(**kwargs): pass",
            "register",
            "hook 'timm_robust_epoch_end' takes **kwargs: expected arguments by name",
        ),
        (
            "@hookimpl(wrapper=True)\ndef timm_robust_defenses(): return (yield)",
            "register",
            "hook 'timm_robust_defenses' is a wrapper: expected a plain function",
        ),
        (
            "@hookimpl(hookwrapper=True)\ndef timm_robust_defenses(): yield",
            "register",
            "hook 'timm_robust_defenses' is a wrapper: expected a plain function",
        ),
        (
            "@hookimpl\ndef timm_robust_defenses(): yield {'name': 'foo'}",
            "collect",
            "timm_robust_defenses() gave a dict: expected DefenseSpec",
        ),
        (
            "@hookimpl\ndef timm_robust_defenses(): return spec()",
            "collect",
            "timm_robust_defenses() gave a DefenseSpec: expected an iterable of DefenseSpec",
        ),
        (
            "@hookimpl\ndef timm_robust_defenses():\n    yield spec()\n    raise ValueError('half-way')",
            "collect",
            "ValueError: half-way",
        ),
        (
            "@hookimpl\ndef timm_robust_defenses(): yield spec(); yield spec()",
            "collect",
            "timm_robust_defenses() gave 'foo' twice: expected different names",
        ),
        (
            GOOD + "@hookimpl\ndef timm_robust_recipes(): yield recipe(); yield recipe()",
            "collect",
            "timm_robust_recipes() gave 'foo-quick' twice: expected different names",
        ),
        (
            GOOD + "@hookimpl\ndef timm_robust_recipes(): yield recipe(); raise ValueError('half-way')",
            "collect",
            "ValueError: half-way",
        ),
        (
            GOOD + "@hookimpl\ndef timm_robust_recipes(): return [spec('bar')]",
            "collect",
            "timm_robust_recipes() gave a DefenseSpec: expected RecipeSpec",
        ),
    ],
)  # fmt: skip
def test_broken_stranger_is_recorded_and_skipped(
    install: Install, caplog: pytest.LogCaptureFixture, code: str, stage: str, error: str
) -> None:
    install(code)
    install(OTHER, distribution="timm-robust-bar", entry="bar")
    manager = discover()
    assert list(manager.defenses()) == ["bar"]

    (failure,) = manager.failures
    assert (failure.plugin, failure.distribution, failure.version) == ("foo", "timm-robust-foo", "0.2")
    assert (failure.stage, failure.error) == (stage, error)
    assert failure.trace.startswith("Traceback")

    assert [record.getMessage() for record in caplog.records] == [
        f"timm-robust-foo 0.2 failed at {stage}: {error}; it is skipped (TIMM_ROBUST_DISABLE_PLUGINS=foo silences this)"
    ]
    with pytest.raises(UserError) as caught:
        manager.defense("foo")
    assert str(caught.value) == f"method 'foo' comes from timm-robust-foo 0.2, which failed at {stage}: {error}"
    assert {row["name"]: row["status"] for row in manager.method_rows()} == {"bar": "active", "foo": "failed"}
    assert {row["name"]: row["error"] for row in manager.report()} == {"bar": "", "foo": f"failed at {stage}: {error}"}


def test_refused_signature_leaves_nothing_behind(install: Install) -> None:
    # pluggy before 1.7 keeps the hooks that it checked before the bad one
    install(GOOD + "\n@hookimpl\ndef timm_robust_epoch_end(run, wrong): pass\n")
    manager = discover()
    assert manager.defenses() == {}
    assert manager.implementations("timm_robust_defenses") == []
    (failure,) = manager.failures
    assert failure.stage == "register"
    assert "timm_robust_epoch_end" in failure.error and "wrong" in failure.error


def test_keyboard_interrupt_passes(install: Install) -> None:
    install("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        discover()


def test_unknown_method(install: Install) -> None:
    install()
    install("1 / 0", distribution="timm-robust-zoo", entry="zoo")
    with pytest.raises(UserError) as caught:
        discover().defense("fooo")
    assert str(caught.value) == (
        "unknown method 'fooo': did you mean foo? (known: foo) (see timm-robust methods; plugins that failed: zoo)"
    )


def test_future_api_is_listed_and_not_raised(install: Install) -> None:
    # rules that this host does not know do not apply to it
    install("@hookimpl\ndef timm_robust_defenses(): yield spec(api_version=2, recommends={'warp': 9})")
    manager = discover()
    assert manager.defenses() == {} and manager.failures == []
    (row,) = manager.method_rows()
    assert (row["status"], row["error"]) == ("incompatible", "needs plugin API 2, but this timm-robust has 1")
    (row,) = manager.report()
    assert (row["status"], row["api_version"], row["offers"]) == ("incompatible", 2, ["foo"])
    with pytest.raises(UserError) as caught:
        manager.defense("foo")
    assert str(caught.value) == (
        "method 'foo' comes from timm-robust-foo 0.2, which needs plugin API 2, but this timm-robust has 1"
    )


def test_name_conflict_names_both_and_the_way_out(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(distribution="timm-robust", entry="aaa", version="0.1.0")
    install(distribution="timm-robust-foo", entry="zzz")
    with pytest.raises(PluginConflict) as caught:
        discover().defenses()
    assert isinstance(caught.value, UserError)
    assert str(caught.value) == (
        "the method 'foo' is offered by both timm-robust 0.1.0 and timm-robust-foo 0.2: "
        "block one with TIMM_ROBUST_DISABLE_PLUGINS=zzz"
    )
    monkeypatch.setenv(DISABLE, "zzz")
    assert discover().defense("foo").distribution == "timm-robust"


def test_two_distributions_with_one_entry_point_name(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("raise SystemExit", distribution="timm-robust-abc")
    install("raise SystemExit", distribution="timm-robust-foo")
    with pytest.raises(PluginConflict) as caught:
        discover()
    assert str(caught.value) in {
        f"the plugin name 'foo' is used by both {first} 0.2 and {second} 0.2: block one with {DISABLE}={second}"
        for first, second in (("timm-robust-abc", "timm-robust-foo"), ("timm-robust-foo", "timm-robust-abc"))
    }
    monkeypatch.setenv(DISABLE, "timm-robust-abc")
    assert [failure.distribution for failure in discover().failures] == ["timm-robust-foo"]


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [(("nets", "net18"), ("others", "net18"), "model 'net18'"), (("nets", "a"), ("nets", "b"), "model family 'nets'")],
)
def test_networks_conflict(manager: PluginManager, first: tuple[str, str], second: tuple[str, str], clash: str) -> None:
    for plugin, (name, model) in {"one": first, "two": second}.items():
        nets = ModelsSpec(name=name, summary="nets", api_version=1, module="nets", models=(model,))
        manager.register(plugin_of(nets, hook="timm_robust_models"), name=plugin, distribution=plugin, version="1")
    with pytest.raises(PluginConflict, match=f"^the {clash} is offered by both one 1 and two 1: block one with"):
        manager.model_specs()


@pytest.mark.parametrize("name", ["foo", "timm-robust-foo", "Timm_Robust.Foo", "other, foo"])
def test_blocked_plugin_is_never_imported(install: Install, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = install()
    install(OTHER, distribution="timm-robust-bar", entry="bar")
    monkeypatch.setenv(DISABLE, name)
    manager = discover()
    assert list(manager.defenses()) == ["bar"]
    assert module.stem not in sys.modules
    assert {row["name"]: row["status"] for row in manager.report()} == {"bar": "active", "foo": "blocked"}
    with pytest.raises(UserError) as caught:
        manager.defense("foo")
    assert str(caught.value) == (
        "method 'foo' comes from timm-robust-foo 0.2, which is blocked by TIMM_ROBUST_DISABLE_PLUGINS"
    )


@pytest.mark.parametrize(
    ("allowed", "left"), [("foo", ["foo"]), ("timm-robust-bar", ["bar"]), ("", []), ("foo,bar", ["bar", "foo"])]
)
def test_allow_list(install: Install, monkeypatch: pytest.MonkeyPatch, allowed: str, left: list[str]) -> None:
    install()
    install(OTHER, distribution="timm-robust-bar", entry="bar")
    monkeypatch.setenv(LOAD, allowed)
    manager = discover()
    assert list(manager.defenses()) == left
    for name in {"foo", "bar"} - set(left):
        with pytest.raises(UserError, match=f"which is not named in {LOAD}$"):
            manager.defense(name)


@pytest.mark.parametrize("code", ["1 / 0", "raise SystemExit", GOOD + "    1 / 0"])
def test_strict_raises_everything(install: Install, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    install(code)
    monkeypatch.setenv(STRICT, "1")
    with pytest.raises(PluginError, match=r"^timm-robust-foo 0.2 failed at (import|collect): ") as caught:
        discover().defenses()
    assert isinstance(caught.value.__cause__, (ZeroDivisionError, SystemExit))


@pytest.mark.parametrize("code", ["1 / 0", GOOD + "    1 / 0", GOOD.replace("spec()", "spec(summary='')")])
def test_own_plugins_must_work(install: Install, code: str) -> None:
    install(code, distribution="timm-robust", version="0.1.0")
    with pytest.raises(PluginError, match=r"^timm-robust 0.1.0 failed at (import|collect): "):
        discover().defenses()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Foo"}, "has a bad name: expected lower case letters, digits and single hyphens"),
        ({"name": "foo_bar"}, "has a bad name: expected lower case letters, digits and single hyphens"),
        ({"api_version": "1"}, "has api_version '1': expected an integer like 1"),
        ({"summary": "two\nlines"}, "has summary 'two\\nlines': expected one line"),
        ({"reference": "a paper"}, "has reference 'a paper': expected a Reference with the title of its paper"),
        ({"reference": Reference(title="F", arxiv="2401.1")}, "has arxiv '2401.1': expected a number like 1706.06083"),
        ({"target": "foo.code.Foo"}, "has target 'foo.code.Foo': expected 'module:Class'"),
        ({"config": ""}, "has config '': expected 'module:Class'"),
        ({"recommends": ["lr"]}, "has recommends ['lr']: expected a dict by recipe setting"),
    ],
)  # fmt: skip
def test_bad_specs(manager: PluginManager, changes: dict[str, Any], message: str) -> None:
    spec = make_spec(**changes)
    manager.register(plugin_of(spec), name="foo")
    with pytest.raises(PluginError) as caught:
        manager.defenses()
    assert str(caught.value) == f"plugin 'foo' failed at collect: defense {spec.name!r} {message}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Foo"}, "has a bad name: expected lower case letters, digits and single hyphens"),
        ({"summary": ""}, "has summary '': expected one line"),
        ({"source": " "}, "has source ' ': expected one line, such as the paper or 'our choice'"),
        ({"values": [("epochs", 2)]}, "has values [('epochs', 2)]: expected a dict by setting"),
        ({"use": None}, "has use None: expected text"),
        ({"notes": {"lr": "code"}}, "has a note about 'lr', which is not among its values"),
    ],
)  # fmt: skip
def test_bad_recipe_specs(manager: PluginManager, changes: dict[str, Any], message: str) -> None:
    spec = make_recipe_spec(**changes)
    manager.register(plugin_of(spec, hook="timm_robust_recipes"), name="foo")
    with pytest.raises(PluginError) as caught:
        manager.recipes()
    assert str(caught.value) == f"plugin 'foo' failed at collect: recipe {spec.name!r} {message}"


RECIPES = "@hookimpl\ndef timm_robust_recipes(): yield recipe(); yield recipe('foo')\n"


def test_recipes_of_a_plugin(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method and a recipe may share a name; a blocked plugin takes its recipes along."""
    install(GOOD + RECIPES)
    manager = discover()
    assert list(manager.recipes()) == ["foo-quick", "foo"]
    found = manager.recipe("foo-quick")
    assert (found.spec.values, found.origin) == ({"epochs": 2}, "timm-robust-foo 0.2")
    (row,) = manager.report()
    assert (row["kind"], row["offers"]) == ("defense, recipe", ["foo", "foo-quick"])
    with pytest.raises(UserError) as caught:
        manager.recipe("foo-quik")
    assert str(caught.value) == (
        "unknown recipe 'foo-quik': did you mean foo-quick, foo? (known: foo, foo-quick) (see timm-robust recipes)"
    )

    monkeypatch.setenv(DISABLE, "foo")
    manager = discover()
    assert manager.recipes() == {}
    with pytest.raises(UserError) as caught:
        manager.recipe("foo-quick")
    assert str(caught.value) == (
        "unknown recipe 'foo-quick': there are none (see timm-robust recipes; blocked plugins: foo)"
    )


def test_recipes_conflict(install: Install) -> None:
    install(RECIPES)
    install(RECIPES, distribution="timm-robust-bar", entry="bar")
    with pytest.raises(PluginConflict) as caught:
        discover().recipe("foo")
    assert str(caught.value) == (
        "the recipe 'foo-quick' is offered by both timm-robust-bar 0.2 and timm-robust-foo 0.2: "
        "block one with TIMM_ROBUST_DISABLE_PLUGINS=foo"
    )


def test_recipe_of_a_future_api(install: Install) -> None:
    install("@hookimpl\ndef timm_robust_recipes(): yield recipe(api_version=2, source='')")
    manager = discover()
    assert manager.recipes() == {} and manager.failures == []
    with pytest.raises(UserError, match="recipe 'foo-quick' comes from timm-robust-foo 0.2, which needs plugin API 2"):
        manager.recipe("foo-quick")


def test_networks_spec_needs_names(manager: PluginManager) -> None:
    nets = ModelsSpec(name="nets", summary="nets", api_version=1, module="nets", models=())
    manager.register(plugin_of(nets, hook="timm_robust_models"), name="nets")
    with pytest.raises(PluginError, match=r"models 'nets' has models \(\): expected a tuple of names$"):
        manager.model_specs()


def test_using(manager: PluginManager) -> None:
    plugin = plugin_of(make_spec(recommends={"activation": "silu", "epochs": 3}))
    with manager.using(plugin, name="mine"):
        assert manager.defense("foo").plugin == "mine"
        with pytest.raises(PluginConflict, match=r"^the plugin name 'mine' is used by both plugin 'mine' and"):
            manager.register(plugin, name="mine")
    assert manager.defenses() == {} and manager.report() == []
    with manager.using(plugin, name="mine"):
        assert list(manager.defenses()) == ["foo"]


def test_optional_hook_of_a_newer_host(manager: PluginManager) -> None:
    plugin = plugin_of(make_spec())
    plugin.timm_robust_probes = hookimpl(optionalhook=True)(lambda: ())
    manager.register(plugin, name="mine")
    assert manager.report()[0]["hooks"] == ["timm_robust_defenses"]


OPTIONS = """
from dataclasses import dataclass
from timm_robust.plugin import Options, option

@dataclass(frozen=True, kw_only=True)
class FooOptions(Options):
    strength: float = option(1.0, help="how much foo", low=0.0)
"""


def test_load_config(install: Install) -> None:
    module = install()
    module.with_name(f"{module.stem}_code.py").write_text(OPTIONS)
    assert discover().load_config("foo")().strength == 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (
            OPTIONS.replace("FooOptions", "FooOption"),
            "module '{module}' of method 'foo' has no 'FooOptions': did you mean FooOption?",
        ),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        (
            OPTIONS.replace("(Options)", ""),
            "FooOptions of method 'foo' is not an options class: expected a dataclass derived from Options",
        ),
        (
            OPTIONS.replace("option(1.0", "option(-1.0"),
            "default of option 'strength' of method 'foo' is -1.0: expected at least 0",
        ),
    ],
)
def test_load_config_fails(install: Install, monkeypatch: pytest.MonkeyPatch, code: str, error: str) -> None:
    module = install()
    module.with_name(f"{module.stem}_code.py").write_text(code)
    error = error.format(module=f"{module.stem}_code")
    manager = discover()
    with pytest.raises(UserError) as caught:
        manager.load_config("foo")
    assert str(caught.value) == (
        f"method 'foo' comes from timm-robust-foo 0.2, which failed at load: {error} (TIMM_ROBUST_STRICT=1 shows where)"
    )
    assert [failure.stage for failure in manager.failures] == ["load"]
    monkeypatch.setenv(STRICT, "1")
    with pytest.raises(PluginError) as strict:
        discover().load_config("foo")
    assert str(strict.value) == f"timm-robust-foo 0.2 failed at load: {error}"


def test_load_target(install: Install) -> None:
    pytest.importorskip("torch")
    module = install()
    code = module.with_name(f"{module.stem}_code.py")
    code.write_text("from timm_robust.defense import Defense\nclass Foo(Defense): pass\n")
    assert discover().load_target("foo").__name__ == "Foo"
    del sys.modules[code.stem]
    code.write_text("class Foo: pass  # something else now\n")
    with pytest.raises(UserError, match=f"target '{code.stem}:Foo' of method 'foo' is no subclass of Defense"):
        discover().load_target("foo")


NETS = """
@hookimpl
def timm_robust_models():
    yield ModelsSpec(name="nets", summary="nets", api_version=1, module=f"{__name__}_nets", models=("fake_net18",))
"""


def test_register_models(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    timm = pytest.importorskip("timm")
    module = install(NETS)
    install(
        NETS.replace("fake_net18", "fake_net19").replace('"nets"', '"more-nets"', 1),
        distribution="timm-robust-bar",
        entry="bar",
    )
    nets = module.with_name(f"{module.stem}_nets.py")
    register = (
        "from timm.models import register_model\n@register_model\ndef fake_net18(pretrained=False): return None\n"
    )
    nets.write_text(register)
    Path(str(nets).replace("foo", "bar")).write_text("")
    manager = discover()
    manager.register_models()
    manager.register_models()
    assert timm.is_model("fake_net18")
    (failure,) = manager.failures
    assert (failure.plugin, failure.stage) == ("bar", "load")
    assert failure.error == "importing 'fake_timm_robust_bar_bar_nets' does not register fake_net19 with timm"
    assert [row["status"] for row in manager.report()] == ["failed", "active"]
    assert len(caplog.records) == 1


FILE = """
from __future__ import annotations
from dataclasses import dataclass
from timm_robust.plugin import DefenseSpec, Options, Reference, hookimpl, option

@dataclass(frozen=True, kw_only=True)
class MineOptions(Options):
    steps: int = option(3, help="attack steps")

@hookimpl
def timm_robust_defenses():
    yield DefenseSpec(name="mine", summary="my own", reference=Reference(title="Mine"), api_version=1,
                      target=f"{__name__}:Mine", config=f"{__name__}:MineOptions")
"""


def test_load_file(manager: PluginManager, tmp_path: Path) -> None:
    path = tmp_path / "my-plugin.py"
    path.write_text(FILE)
    assert manager.load_file(path) == manager.load_file(str(path)) == "my-plugin"
    assert manager.load_config("mine")().steps == 3  # type: ignore[attr-defined]


def test_load_file_fails_loudly(manager: PluginManager, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    with pytest.raises(UserError) as caught:
        manager.load_file(path)
    assert str(caught.value) == (
        f"plugin file '{path}' is not there or no Python file: expected a file that ends in .py"
    )
    path.write_text("1 / 0")
    with pytest.raises(PluginError, match=r"^plugin 'broken' failed at import: ZeroDivisionError: division by zero$"):
        manager.load_file(path)
    assert "timm_robust_file_broken" not in sys.modules
    path.write_text(FILE.replace("timm_robust_defenses", "timm_robust_defence"))
    with pytest.raises(PluginError, match="failed at register: unknown hook 'timm_robust_defence': did you mean"):
        manager.load_file(path)
    path.write_text(FILE)  # mended
    manager.load_file(path)
    assert list(manager.defenses()) == ["mine"]


def test_get_manager_is_cached_and_uses_real_discovery(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from importlib.metadata import entry_points

    install()
    monkeypatch.setattr("timm_robust.plugin.manager.entry_points", entry_points)
    monkeypatch.setenv(LOAD, "timm-robust-foo")
    get_manager.cache_clear()
    try:
        assert list(get_manager().defenses()) == ["foo"]
        assert get_manager() is get_manager()
    finally:
        get_manager.cache_clear()
    assert caplog.records == []
