"""Warm-up of the radius: its size at each step, and that images stay inside it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import STEPS_PER_EPOCH
from timm_robust.plugin import get_manager
from timm_robust.recipes.presets import make_recipe
from timm_robust.threat import make_threat
from timm_robust.training.engine import Engine
from timm_robust.training.eps_warmup import eps_factor


def test_radius_of_each_step():
    """Bag of Tricks' (t + 1) / W with t = epoch + (i + 1) / n, without its overshoot."""
    recipe = make_recipe("bag-of-tricks", {}, {"eps_warmup_epochs": 15})
    t = np.arange(1, 40 * STEPS_PER_EPOCH + 1) / STEPS_PER_EPOCH
    found = np.array([eps_factor(recipe, done) for done in t])
    assert np.allclose(found, np.minimum(1, (t + 1) / 15)) and found.max() == 1
    assert (
        found[0] == pytest.approx((1 + 1 / STEPS_PER_EPOCH) / 15)
        and (found[t >= 14] == 1).all()
        and (found[t < 14] < 1).all()
    )
    assert eps_factor(make_recipe("bag-of-tricks", {}, {}), 0.1) == 1
    short = make_recipe("bag-of-tricks", {}, {"eps_warmup_epochs": 15, "epochs": 4})
    assert eps_factor(short, 1) == 0.5 and eps_factor(short, 4) == 1, "the last epoch always has all of it"


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("pgd", {"steps": 2}),
        ("pgd", {"steps": 2, "stop_after": "1"}),
        ("trades", {"steps": 1}),
        ("n-fgsm", {}),
        ("gradalign", {}),
        ("free", {"replays": 2}),
        ("fgsm-mep", {}),
        ("atas", {"warmup_epochs": 1, "reset_epochs": 2}),
    ],
)
def test_images_stay_inside_the_radius_of_their_step(train_small, monkeypatch, method, options):
    """Whatever a method carries over from earlier steps; checks keep the full radius, and attacks do not pile up."""
    seen, epochs, full = [], 3, make_threat(image_size=8)
    cls, original = get_manager().load_target(method), Engine._update

    def noted(self, clip):
        seen.append((self.run.threat.eps, self.attacker.threat.eps, len(self.attacker._attacks)))
        assert self.checker.threat == self.config.threat == full
        original(self, clip)

    def watched(self, batch):
        perturbed = crafted(self, batch)
        far = (perturbed.images.detach() - batch.images).abs().max().item()
        assert far <= self.eps_multiplier * self.run.threat.eps + 1e-6
        assert far > 0 or method == "free"
        return perturbed

    crafted = cls.perturb
    monkeypatch.setattr(cls, "perturb", watched)
    monkeypatch.setattr(Engine, "_update", noted)
    settings = {"eps_warmup_epochs": epochs, "check_attack": "pgd-1-1", "watch_every": 1000}
    train_small(method, epochs=epochs, batch_size=90, method_args=options, recipe_args=settings)
    radii, same, kept = np.array(seen).T
    t = np.arange(1, len(radii) + 1) / (len(radii) / epochs)
    assert np.allclose(radii, full.eps * np.minimum(1, (t + 1) / epochs)) and (radii == same).all()
    assert kept.max() <= 2
