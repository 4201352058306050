"""RobustBench's released package, or a stand-in with its interface."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from timm_robust.errors import UserError
from timm_robust.robustbench import released

FAKE = {
    "__init__.py": "",
    "helper_files/list.txt": "ok",
    "loaders.py": (
        "import pkg_resources\n"
        "WORDS = open(pkg_resources.resource_filename(__name__, 'helper_files/list.txt')).read()\n"
    ),
    "model_zoo/enums.py": (
        "from enum import Enum\n"
        "class BenchmarkDataset(Enum):\n    cifar_10 = 'cifar10'\n"
        "class ThreatModel(Enum):\n    Linf = 'Linf'\n    corruptions_3d = 'corruptions_3d'\n"
    ),
    "model_zoo/__init__.py": (
        "from timm.models.registry import register_model\n"
        "from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel\n"
        "model_dicts = {BenchmarkDataset.cifar_10: {ThreatModel.Linf: {\n"
        "    'Doe2020One': {'gdrive_id': 'abc'}, 'Doe2020Many': {'gdrive_id': ['a', 'b']}}}}\n"
    ),
    "utils.py": (
        "import torch\n"
        "def load_model(model_name, model_dir, dataset, threat_model):\n"
        "    path = f'{model_dir}/{dataset}/{threat_model}/{model_name}.pt'\n"
        "    model = torch.nn.Linear(2, 2)\n"
        "    model.load_state_dict(torch.load(path, map_location='cpu'))\n"
        "    return model\n"
    ),
    "eval.py": (
        "from autoattack import AutoAttack\n"
        "from autoattack.state import EvaluationState\n"
        "from robustbench.loaders import WORDS\n"
        "from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel\n"
        "def get_preprocessing(dataset, threat_model, name, given):\n    return given\n"
        "def load_clean_dataset(dataset, n, folder, transform):\n    raise FileNotFoundError(folder)\n"
        "def benchmark(model, n_examples, dataset, threat_model, data_dir, device, batch_size, eps, log_path,\n"
        "              preprocessing):\n"
        "    x, y = load_clean_dataset(dataset, n_examples, data_dir, preprocessing)\n"
        "    a = AutoAttack(model, norm=threat_model, eps=eps, version='standard', device=device, log_path=log_path)\n"
        "    adversarial = a.run_standard_evaluation(x, y, bs=batch_size, state_path=None)\n"
        "    share = lambda images: (model(images).argmax(1) == y).float().mean().item()\n"
        "    return share(x), share(adversarial)\n"
    ),
}
"""What of the released package the adapter has to get past, and its interface, in a few lines."""


def write_package(folder: Path, without: tuple[str, ...] = ()) -> None:
    for name, text in FAKE.items():
        if name not in without:
            path = folder / "robustbench" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@pytest.fixture
def fresh():
    """No robustbench is imported, before and after."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "robustbench"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    forget()
    yield
    forget()


@pytest.fixture(params=["real", "interface"])
def robustbench(request, fresh, tmp_path, monkeypatch):
    """The real package where it is installed, and a stand-in with its imports and its interface everywhere."""
    if request.param == "interface":
        write_package(tmp_path / "site")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
    else:
        try:
            with released():
                pass
        except UserError as error:
            pytest.skip(str(error))
    return request.param
