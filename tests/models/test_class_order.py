"""Class order: classes matched by name."""

from __future__ import annotations

import pytest
import torch

from timm_robust.errors import UserError
from timm_robust.models.class_order import ClassAlignedModel, class_columns


def test_classes_are_matched_by_name():
    assert class_columns(["a", "b"], ["a", "b"], 2, owner="x") is None
    assert class_columns(["a", "b", "c"], ["c", "a"], 3, owner="x") == [2, 0]
    assert class_columns(None, ["c", "a"], 2, owner="x") is None
    assert class_columns(["0", "1"], ["cat", "dog"], 2, owner="x") is None
    with pytest.raises(UserError, match="x was trained on 3 classes, this data has 2, and there are no names to match"):
        class_columns(None, ["c", "d"], 3, owner="x")
    with pytest.raises(UserError, match="x was trained on 3 classes, this data has 2, and there are no names to match"):
        class_columns(["a", "b", "c"], ["0", "1"], 3, owner="x")


def test_a_network_of_other_classes_is_refused():
    with pytest.raises(
        UserError, match="x has 'b' where this data has 'd', and 0 more of 2 classes differ: expected a"
    ):
        class_columns(["a", "b", "c"], ["c", "d"], 3, owner="x")
    with pytest.raises(
        UserError, match="x has 'Dog' where this data has 'dog', and case and spacing count, and 1 more"
    ):
        class_columns(["Cat", "Dog"], ["dog", "cat"], 2, owner="x")


def test_an_observer_answers_in_the_order_of_the_data(small_model):
    images, model = torch.rand(2, 3, 8, 8), small_model.eval()
    torch.testing.assert_close(ClassAlignedModel(model, [3, 1])(images), model(images)[:, [3, 1]])
    torch.testing.assert_close(ClassAlignedModel(model)(images), model(images))
