"""The networks that plugins add are registered, as the verbs do it."""

from __future__ import annotations

import pytest

import timm_robust


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    timm_robust.register_models()
