"""The record's rules against the published records."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from timm_robust.errors import UserError
from timm_robust.robustbench import BOARDS, check_id, find_board, problems


@pytest.fixture(scope="session")
def published() -> dict[str, dict]:
    """RobustBench's published records, one by DATASET/THREAT/ID.json."""
    given = os.environ.get("TIMM_ROBUST_ROBUSTBENCH")
    folder = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data" / "robustbench"
    if not (folder / "model_info.json").is_file():
        pytest.skip("needs RobustBench's records: set TIMM_ROBUST_ROBUSTBENCH to the folder with model_info.json")
    return json.loads((folder / "model_info.json").read_text())


def test_the_rules_hold_for_all_published_records_but_the_known_exceptions(published):
    assert len(published) == 236
    found = {key: problems(record, *key.split("/")[:2]) for key, record in published.items()}
    sentences = [sentence for many in found.values() for sentence in many]
    told = {
        "old radius": [s for s in sentences if s == "eps is '0.031', the board's is '8/255'"],
        "other folder": [s for s in sentences if s.startswith("dataset is 'cifar10', the folder says 'cifar100'")],
        "the word null": [s for s in sentences if s.startswith("reported is 'null'")],
        "no authors": [s for s in sentences if s == "authors is empty: expected text"],
    }
    assert [len(many) for many in told.values()] == [6, 5, 1, 3]
    assert sum(map(len, told.values())) == len(sentences), sentences


def test_the_id_rule_holds_for_all_but_nine(published):
    def follows(model_id: str) -> bool:
        try:
            return check_id(model_id) == model_id
        except UserError:
            return False

    others = sorted(name for key in published if not follows(name := Path(key).stem))
    assert len(published) - len(others) == 227
    assert set(others) == {
        "AlexNet", "Geirhos2018_SIN", "Geirhos2018_SIN_IN", "Geirhos2018_SIN_IN_IN", "Standard", "Standard_R50",
    }  # fmt: skip


def test_the_boards_are_those_of_the_published_records(published):
    norms = {tuple(key.split("/")[:2]) for key in published if key.split("/")[1] != "corruptions"}
    assert norms == set(BOARDS)
    for place, board in BOARDS.items():
        radii = [record["eps"] for key, record in published.items() if tuple(key.split("/")[:2]) == place]
        assert max(set(radii), key=radii.count) == board.eps_text
    assert find_board("CIFAR-10", "linf").eps == 8 / 255 and find_board("imagenet", "Linf").eps == 4 / 255


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"eps": 8 / 255}, "eps is 0.03137254901960784: expected text"),
        ({"eps": "4/255"}, "eps is '4/255', the board's is '8/255'"),
        ({"clean_acc": 54.3}, "clean_acc is 54.3: expected number as text"),
        ({"clean_acc": "54.30%"}, "clean_acc is '54.30%'"),
        ({"autoattack_acc": "126.00"}, "autoattack_acc is '126.00'"),
        ({"additional_data": "false"}, "additional_data is 'false': expected true or false"),
        ({"number_forward_passes": True}, "number_forward_passes is True"),
        ({"venue": None}, "venue is empty"),
        ({"acc": "1"}, "acc is no field of RobustBench"),
        ({"dataset": "CIFAR10"}, "the folder says 'cifar10'"),
    ],
)
def test_a_wrong_record_is_told(change, sentence):
    good = {
        "link": "a", "name": "a", "authors": "a", "additional_data": False, "number_forward_passes": 1,
        "dataset": "cifar10", "venue": "a", "architecture": "a", "eps": "8/255", "clean_acc": "54.30", "reported": "",
        "autoattack_acc": "26.56",
    }  # fmt: skip
    assert problems(good, "cifar10", "Linf") == []
    assert any(sentence in problem for problem in problems({**good, **change}, "cifar10", "Linf"))
    del good["autoattack_acc"]
    assert problems(good, "cifar10", "Linf") == ["autoattack_acc is missing"]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: find_board("cifar11", "Linf"), "unknown RobustBench data set 'cifar11': did you mean cifar10"),
        (lambda: find_board("imagenet", "L2"), "unknown RobustBench threat model for imagenet 'L2'"),
        (lambda: check_id("my-model"), "model id 'my-model': RobustBench expects <Name><Year><FirstWordOfTitle>"),
        (lambda: check_id("Doe26Smooth"), "model id 'Doe26Smooth'"),
        (lambda: check_id("Doe2026Smooth_R 18"), "model id"),
        (lambda: check_id("Doe2026Smooth/../x"), "model id"),
    ],
)
def test_unknown_boards_and_ids(call, sentence):
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        call()
