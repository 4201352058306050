"""The engines that a test makes."""

from __future__ import annotations

import pytest

from timm_robust.training.engine import Engine


@pytest.fixture
def engines(monkeypatch):
    """Every engine that the test makes."""
    made, original = [], Engine.__init__

    def kept(self, job):
        original(self, job)
        made.append(self)

    monkeypatch.setattr(Engine, "__init__", kept)
    return made
