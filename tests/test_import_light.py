"""Importing the package and listing plugins stay light: whoever only asks what there is must not wait for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "torchattacks",
    "pyautoattack",
    "autoattack",
    "robustbench",
    "sklearn",
    "accelerate",
    "matplotlib",
)

LISTING = """
from timm_robust.plugin import get_manager
names = {row["name"] for row in get_manager().method_rows() + get_manager().report()}
if not names >= {"pgd", "sat", "cifar-nets"}:
    raise SystemExit(f"the package's own plugins are not installed, only {names}")
"""

OPTIONS = """
from timm_robust.plugin import DistillerSpec, ModifierSpec, get_manager
configs = [get_manager().load_config(name) for name in get_manager().defenses()]
kinds = (ModifierSpec, get_manager().modifiers()), (DistillerSpec, get_manager().distillers())
configs += [get_manager().load_config(name, kind) for kind, names in kinds for name in names]
"""

RECIPES = """
from timm_robust.recipes.check import parse_use
from timm_robust.recipes.presets import all_recipes, make_recipe
for name, found in all_recipes().items():
    make_recipe(name, {}, {}), parse_use(found.spec)
"""


@pytest.mark.parametrize(
    "code",
    [
        "import timm_robust",
        "import timm_robust.recipes.recipe, timm_robust.threat",
        "import timm_robust.api.compare, timm_robust.api.distill, timm_robust.report.page, timm_robust.cli",
        LISTING,
        OPTIONS,
        RECIPES,
    ],
    ids=["package", "settings", "comparison", "listing", "options", "recipes"],
)
def test_import_is_light(code: str) -> None:
    code += f"\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_listing_leaves_the_code_of_methods_alone() -> None:
    code = LISTING + (
        "import sys\n"
        "loaded = [name for name in sys.modules if name.startswith('timm_robust_plugins.') and name.count('.') == 2]\n"
        "print([name for name in loaded if not name.endswith(('.plugin', '.recipes'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
