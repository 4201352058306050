"""Free adversarial training against a training loop by hand."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm_robust_plugins.free.free import Free, free_update

from tests.support import EPS
from timm_robust.training.engine import Engine


def test_free_update():
    """The signed step of the clipped sum's gradient, which a pixel that was clipped does not have."""
    random = np.random.default_rng(0)
    images, delta, gradient = random.uniform(0, 1, (3, 4, 3, 5, 5))
    delta = (2 * delta - 1) * EPS
    gradient -= 0.5
    images[:, :, 0], images[:, :, 1] = 0.0, 1.0
    expected = delta + EPS * np.sign(np.where((images + delta < 0) | (images + delta > 1), 0, gradient))
    found = free_update(*map(torch.from_numpy, (delta, gradient, images)), step=EPS, eps=EPS)
    assert np.allclose(found.numpy(), np.clip(expected, -EPS, EPS), atol=1e-15)


@pytest.fixture
def free_run(train_small, monkeypatch):
    """A small run of free training with three replays: batches as they came, perturbations before and after each."""
    seen = SimpleNamespace(batches=[], before=[], after=[], start=None, updates=0, lengths=[])
    perturb, commit, update = Free.perturb, Free.commit, Engine._update

    def watched_perturb(self, batch):
        if seen.start is None:
            seen.start = copy.deepcopy(self.run.unwrapped_model)
        seen.batches.append(batch)
        seen.before.append(self.delta.clone())
        return perturb(self, batch)

    def watched_commit(self, batch, perturbed, output):
        commit(self, batch, perturbed, output)
        seen.after.append(self.delta.clone())

    def watched_update(self, clip):
        seen.updates += 1
        seen.lengths.append(self.schedule._torch.total_steps)
        update(self, clip)

    monkeypatch.setattr(Free, "perturb", watched_perturb)
    monkeypatch.setattr(Free, "commit", watched_commit)
    monkeypatch.setattr(Engine, "_update", watched_update)
    recipe = {"optimizer": "momentum", "schedule": "onecycle", "lr": 0.02, "check_attack": "pgd-1-1"}
    seen.result = train_small("free", batch_size=100, method_args={"replays": 3}, recipe_args=recipe, epochs=2)
    return seen


def test_free_takes_several_steps_on_each_batch(free_run):
    assert [len(b) for b in free_run.batches] == 2 * ([100] * 6 + [70] * 3)
    assert free_run.updates == 18 and set(free_run.lengths) == {18}, "the schedule counts replays"
    for start in range(0, 18, 3):
        same = free_run.batches[start : start + 3]
        assert all(b is same[0] for b in same)
    assert not torch.equal(free_run.batches[0].index, free_run.batches[3].index)
    assert [row["passes"] for row in free_run.result.history] == [3.0, 3.0]


def test_free_perturbation_is_carried_to_the_next_batch_and_epoch(free_run):
    assert not free_run.before[0].any()
    assert all(torch.equal(a, b) for a, b in zip(free_run.after, free_run.before[1:], strict=False))
    assert all(after.abs().max() == np.float32(EPS) for after in free_run.after)
    last = [i for i, b in enumerate(free_run.batches) if len(b) == 70]
    assert len(last) == 6
    for i in last:
        assert torch.equal(free_run.before[i][70:], free_run.after[i][70:]), "a smaller batch leaves the last rows"
        assert not torch.equal(free_run.before[i][:70], free_run.after[i][:70])


def test_free_equals_a_loop_by_hand(free_run):
    """Shafahi et al., algorithm 1: one backward gives the weights' gradient and the perturbation's."""
    model = free_run.start.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=18)
    delta = torch.zeros(100, 3, 8, 8, requires_grad=True)
    for batch in free_run.batches[::3]:
        for _ in range(3):
            optimizer.zero_grad()
            delta.grad = None
            images = batch.images + delta[: len(batch)]
            # not clamp: some versions of torch give a pixel that is exactly 0 or 1 no gradient
            images = torch.where(images < 0, 0.0, torch.where(images > 1, 1.0, images))
            F.cross_entropy(model(images), batch.targets).backward()
            optimizer.step()
            delta.data = (delta.data + EPS * delta.grad.sign()).clamp(-EPS, EPS)
            if schedule.last_epoch < 17:
                schedule.step()
    state = model.model.state_dict()
    for name, value in load_file(free_run.result.output / "last/model.safetensors").items():
        assert torch.allclose(state[name].float(), value.float(), rtol=1e-5, atol=1e-6), name
    assert torch.allclose(free_run.after[-1], delta.detach(), atol=1e-6)
