"""The census over all of timm: no kink is left without a reason. A quick part runs always."""

from __future__ import annotations

from pathlib import Path

import pytest
from timm_robust_plugins.smooth import census


def test_a_broken_family_is_a_row_and_the_table_stands(tmp_path: Path) -> None:
    names = {"resnet": ["resnet18"], "nothing": ["no_such_model"], "metaformer": ["poolformerv2_s12"]}
    rows = list(census.survey(names))
    assert [row.family for row in rows] == ["metaformer", "nothing", "resnet"]
    broken = rows[1]
    assert broken.kinks is None and "no_such_model" in broken.error
    assert census.unexplained(rows) == [broken]
    text = census.table(rows)
    assert "| resnet | resnet18 | 11.2 | 17 ReLU -> SiLU | 17 relu | clean |" in text and "square is smooth" in text


def test_the_shipped_table_is_clean() -> None:
    eval_model = (Path(census.__file__).parent / "census.md").read_text()
    assert eval_model.startswith("# Census") and "timm 1." in eval_model and eval_model.count("\n| ") > 80


@pytest.mark.slow
def test_no_unexplained_kink_in_any_family() -> None:
    rows = list(census.survey(census.families()))
    assert len(rows) > 70
    assert [(row.family, row.model, row.error, dict(row.kinks or {})) for row in census.unexplained(rows)] == []
