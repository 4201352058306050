"""A stranger's package, really installed, beside installed packages that are broken in every way we could think of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import timm_robust
from timm_robust.plugin.environment import DISABLE, LOAD, STRICT

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "third_party_plugin"
VERSION = "0.3"
IN_TREE = {"fgsm-rs", "pgd", "sat", "standard", "trades"}

HEADER = """
from dataclasses import dataclass
from timm_robust.plugin import DefenseSpec, Options, Reference, hookimpl

@dataclass(frozen=True, kw_only=True)
class NoOptions(Options):
    pass

def spec(name, **changes):
    own = dict(name=name, summary="broken", reference=Reference(title="Broken"), api_version=1)
    paths = dict(target=f"{__name__}:Foo", config=f"{__name__}:NoOptions")
    return DefenseSpec(**{**own, **paths, **changes})

"""

HOOK = "@hookimpl\ndef timm_robust_defenses():\n    "

BROKEN = {
    "raises": ('raise RuntimeError("one\\ntwo")', "failed at import: RuntimeError: one two"),
    "exits": ("import sys; sys.exit('bye')", "failed at import: SystemExit: bye"),
    "needs": ("import a_module_that_is_not_there", "failed at import: ModuleNotFoundError: No module named 'a_module_"),
    "newer-host": (
        "from timm_robust.plugin import TomorrowsSpec",
        "failed at import: ImportError: cannot import name 'TomorrowsSpec' from 'timm_robust.plugin'",
    ),
    "typo": (
        HOOK.replace("defenses", "defences") + "yield spec('typo')",
        "failed at register: unknown hook 'timm_robust_defences': did you mean timm_robust_defenses?",
    ),
    "defaults": (
        HOOK.replace("()", "(extra=1)") + "yield spec('defaults')",
        "failed at register: ",  # pluggy's own words in some versions
    ),
    "no-hook": ("x = 1", "failed at register: no hook found"),
    "wrong-record": (
        HOOK + "yield {'name': 'wrong-record'}",
        "failed at collect: timm_robust_defenses() gave a dict: expected DefenseSpec",
    ),
    "half-way": (
        HOOK + "yield spec('half-way')\n    raise ValueError('no more')",
        "failed at collect: ValueError: no more",
    ),
    "no-attribute": (
        HOOK + "import json; yield json.gone('no-attribute')",
        "failed at collect: AttributeError: module 'json' has no attribute 'gone'",
    ),
}
"""By plugin and method: the code, and how the error begins that it is listed with."""

TOO_NEW = HOOK + "yield spec('too-new', api_version=99, recommends={'warp': 9})"
HOLLOW = (
    HOOK + "yield spec('hollow', target='timm_robust_hollow_code:Hollow')\n"
    "    yield spec('no-options', config='timm_robust_hollow_code:Options')"
)
OBSERVER = "@hookimpl\ndef timm_robust_epoch_end(run):\n    raise RuntimeError('cannot watch')"


def fake_install(site: Path, name: str, code: str) -> None:
    """What pip would leave of `timm-robust-NAME` with one module, on `site`."""
    module = f"timm_robust_fake_{name.replace('-', '_')}"
    (site / f"{module}.py").write_text(HEADER + code + "\n")
    info = site / f"timm_robust_{name.replace('-', '_')}-{VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: timm-robust-{name}\nVersion: {VERSION}\n")
    (info / "entry_points.txt").write_text(f"[timm_robust]\n{name} = {module}\n")


def python(site: Path, *arguments: str, **environment: str) -> SimpleNamespace:
    """Runs Python beside what is installed in `site`; standard error comes as lines."""
    kept = {key: value for key, value in os.environ.items() if key not in (DISABLE, LOAD, STRICT)}
    path = os.pathsep.join([str(site), *filter(None, [kept.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=site.parent,
        env={**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )
    return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr.splitlines())


def command(site: Path, *arguments: str, **environment: str) -> SimpleNamespace:
    return python(site, "-m", "timm_robust", *arguments, **environment)


def warning_of(name: str) -> str:
    return f"timm-robust-{name} {VERSION} {BROKEN[name][1]}"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Path:
    """The example, installed by pip from a copy, so that building it leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "site"), str(folder / "source")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def site(stranger) -> Path:
    """The example beside the broken packages."""
    for name, (code, _) in BROKEN.items():
        fake_install(stranger, name, code)
    for name, code in (("too-new", TOO_NEW), ("hollow", HOLLOW), ("observer", OBSERVER)):
        fake_install(stranger, name, code)
    return stranger


@pytest.fixture(scope="module")
def run_folder(site) -> SimpleNamespace:
    """One epoch with the stranger's method, beside everything that is broken."""
    output = site.parent / "run"
    arguments = ["--model", "resnet18", "--model-kwargs", "layers=[1,1,1,1]", "channels=[8,8,16,16]"]
    arguments += ["--method", "logit-squeeze", "-o", "weight=0.02", "steps=1", "--set", "check_attack=pgd-1-1"]
    arguments += ["--epochs", "1", "--device", "cpu", "--test-attack", "none", "--output", str(output)]
    done = command(site, "train", *arguments)
    assert done.status == 0, done.err
    return SimpleNamespace(output=output, err=done.err)


def test_everything_sound_is_listed_and_each_failure_is_one_line(site):
    done = command(site, "methods", "--json")
    assert done.status == 0
    rows = {row["name"]: row for row in json.loads(done.out)}
    ours = rows["logit-squeeze"]
    assert (ours["distribution"], ours["version"], ours["status"]) == ("timm-robust-logit-squeeze", "0.1.0", "active")
    assert ours["reference"].startswith("Adversarial Logit Pairing")
    assert {name for name, row in rows.items() if row["distribution"] == "timm-robust"} >= IN_TREE
    assert all(row["status"] == "active" for name, row in rows.items() if name in IN_TREE)
    assert len(done.err) == len(BROKEN), done.err
    for name in BROKEN:
        (line,) = [line for line in done.err if line.startswith(f"timm-robust-{name} ")]
        assert line.startswith(warning_of(name))
        assert line.endswith(f"it is skipped ({DISABLE}={name} silences this)")


def test_plugins_tell_state_and_error_of_each(site):
    rows = {row["name"]: row for row in json.loads(command(site, "plugins", "--json").out)}
    for name, (_, error) in BROKEN.items():
        row = rows[name]
        assert (row["status"], row["distribution"], row["version"]) == ("failed", f"timm-robust-{name}", VERSION)
        assert row["error"].startswith(error) and row["offers"] == []
    assert (rows["too-new"]["status"], rows["too-new"]["error"]) == (
        "incompatible",
        "needs plugin API 99, but this timm-robust has 1",
    )
    assert (rows["hollow"]["status"], rows["hollow"]["error"]) == ("active", ""), "nothing is loaded for a listing"
    assert (rows["observer"]["kind"], rows["observer"]["status"]) == ("observer", "active")
    assert rows["logit-squeeze"]["kind"] == "defense, observer, recipe"
    assert rows["logit-squeeze"]["offers"] == ["logit-squeeze", "logit-squeeze-quick"]
    assert all(row["status"] == "active" for row in rows.values() if row["distribution"] == "timm-robust")


def test_the_stranger_trains_and_its_observer_writes(run_folder):
    manifest = json.loads((run_folder.output / "manifest.json").read_text())
    assert manifest["method"] == "logit-squeeze" and manifest["method_args"]["weight"] == 0.02
    assert manifest["plugin"] == {
        "name": "logit-squeeze",
        "distribution": "timm-robust-logit-squeeze",
        "version": "0.1.0",
    }
    (row,) = [json.loads(line) for line in (run_folder.output / "metrics.jsonl").read_text().splitlines()]
    assert (run_folder.output / "logit_squeeze.csv").read_text() == f"0,{row['train_squeeze']:.6g}\n"


def test_a_broken_observer_is_switched_off(run_folder):
    lines = [line for line in run_folder.err if "cannot watch" in line]
    assert lines and all(f"timm-robust-observer {VERSION}" in line for line in lines)
    assert not any("Traceback" in line for line in run_folder.err)


def test_its_checkpoint_needs_nothing_of_it(site, run_folder):
    """Measured with the stranger installed and blocked, then loaded here, where it is not installed at all."""
    asked = [
        str(run_folder.output),
        "--attack",
        "fgsm",
        "--examples",
        "20",
        "--device",
        "cpu",
        "--json",
        "record.json",
    ]
    done = command(site, "evaluate", *asked, **{LOAD: "timm-robust"})
    assert (done.status, done.err) == (0, []), done.err
    record = json.loads((site.parent / "record.json").read_text())
    assert len(record["attacks"]["fgsm"]["robust"]) == 20
    assert timm_robust.load(run_folder.output).config.num_classes == 10


NOT_THERE = (
    f"comes from timm-robust-hollow {VERSION}, which failed at load: "
    f"ModuleNotFoundError: No module named 'timm_robust_hollow_code' ({STRICT}=1 shows where)"
)


def test_ours_train_beside_the_broken(site):
    """And then, in the same process, a method whose code is not there fails with one sentence."""
    code = (
        "import timm_robust\n"
        "def train(method):\n"
        "    return timm_robust.train('resnet18', method, output=method, epochs=1, test_attacks=[], quiet=True,\n"
        "        model_kwargs={'layers': [1, 1, 1, 1], 'channels': [8, 8, 16, 16]}, device='cpu',\n"
        "        recipe_args={'check_attack': 'pgd-1-1'})\n"
        "result = train('fgsm-rs')\n"
        "assert len(result.history) == 1 and not (result.output / 'logit_squeeze.csv').exists()\n"
        "try: train('hollow')\n"
        "except timm_robust.UserError as error: print(error)\n"
    )
    done = python(site, "-c", code)
    assert done.status == 0, done.err
    assert done.out.strip() == f"method 'hollow' {NOT_THERE}"


ASKED = {
    **{name: f"method {name!r} comes from timm-robust-{name} {VERSION}, which {BROKEN[name][1]}" for name in BROKEN},
    "too-new": f"method 'too-new' comes from timm-robust-too-new {VERSION}, which needs plugin API 99",
}


def test_asking_for_what_a_broken_one_offered(site):
    """All in one process: a fresh one each would only repeat the start."""
    code = (
        "import json, sys\n"
        "from timm_robust import UserError, train\n"
        "said = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: train(method=name)\n"
        "    except UserError as error: said[name] = str(error)\n"
        "assert 'torch' not in sys.modules\n"
        "print(json.dumps(said))\n"
    )
    done = python(site, "-c", code, *ASKED)
    assert done.status == 0, done.err
    said = json.loads(done.out)
    for name, sentence in ASKED.items():
        assert said[name].startswith(sentence), said[name]


@pytest.mark.parametrize("name", ["half-way", "too-new"])
def test_the_command_says_so_without_a_traceback(site, name):
    done = command(site, "methods", name)
    assert done.status == 2 and done.out == ""
    assert len(done.err) == len(BROKEN) + 1
    assert done.err[-1].startswith(f"timm-robust: {ASKED[name]}")


def test_options_that_are_not_there_fail_only_when_asked_for(site):
    done = command(site, "methods", "no-options", **{DISABLE: broken()})
    assert done.status == 2 and done.out == ""
    assert done.err == [f"timm-robust: method 'no-options' {NOT_THERE}"]


def broken() -> str:
    return ",".join(BROKEN)


def test_blocked_plugins_are_silent(site):
    """By the names of plugins or of distributions; and an allow list of ours alone."""
    distributions = ",".join(f"timm-robust-{name}" for name in BROKEN)
    for environment in ({DISABLE: broken()}, {DISABLE: distributions}, {LOAD: "timm-robust"}):
        done = command(site, "methods", "--json", **environment)
        assert (done.status, done.err) == (0, [])
        rows = {row["name"]: row["status"] for row in json.loads(done.out)}
        assert rows["raises"] == "blocked" and rows["trades"] == "active"


def test_strict_mode_raises(site):
    done = command(site, "methods", **{STRICT: "1", DISABLE: broken().replace("half-way,", "")})
    assert done.status == 1
    assert done.err[0].startswith("Traceback")
    assert done.err[-1].endswith(f"PluginError: {warning_of('half-way')}")


@pytest.mark.parametrize(
    ("plugin", "method", "said"),
    [
        ("thief", "trades", "the method 'trades' is offered by"),
        ("trades", "other", "the plugin name 'trades' is used by"),
    ],
    ids=["method", "plugin"],
)
def test_a_clash_of_names_is_an_error_that_names_both(tmp_path, plugin, method, said):
    site = tmp_path / "site"
    site.mkdir()
    fake_install(site, plugin, HOOK + f"yield spec({method!r})")
    done = command(site, "methods")
    assert done.status == 2 and done.out == ""
    (line,) = done.err
    assert line.startswith(f"timm-robust: {said} both ")
    assert f"timm-robust {timm_robust.__version__}" in line and f"timm-robust-{plugin} {VERSION}" in line
    # and the advice helps
    name, value = line.rpartition(" ")[2].split("=")
    assert name == DISABLE and command(site, "methods", **{name: value}).status == 0


def test_what_a_failed_uninstall_left_behind(tmp_path):
    """A dist-info folder without METADATA has neither name nor version."""
    site = tmp_path / "site"
    site.mkdir()
    fake_install(site, "ghost", "raise RuntimeError('boo')")
    next(site.glob("*.dist-info/METADATA")).unlink()
    done = command(site, "methods", "--json")
    assert done.status == 0, done.err
    assert {row["name"] for row in json.loads(done.out)} >= {*IN_TREE, "ghost"}
    assert len(done.err) == 1 and "failed at import: RuntimeError: boo" in done.err[0]


@pytest.mark.slow
def test_the_strangers_own_tests(site):
    """Its conformance tests, as its author runs them."""
    tests = site.parent / "source" / "tests"
    only = {LOAD: "timm-robust,timm-robust-logit-squeeze", STRICT: "1"}
    done = python(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), **only)
    assert done.status == 0, done.out
