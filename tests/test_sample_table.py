"""Values kept for each training sample: tables, what several processes make of them, and windows on a frame."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from timm_robust import sample_table as sample_state
from timm_robust.data.batch import View
from timm_robust.sample_table import SampleTable, enlarge, last_copies, put_window, reduce, take_window


def table(samples: int = 10, shape: tuple[int, ...] = (3, 4, 4), **settings) -> SampleTable:
    said = []
    run = SimpleNamespace(num_train=samples, device=torch.device("cpu"), say=said.append)
    made = SampleTable(run, "test: values", shape, **settings)
    made.said = said
    return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("place", sample_state.PLACES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 4)])
def test_what_is_set_comes_back(shape, place, dtype):
    t = table(shape=shape, place=place, dtype=dtype)
    index, values = torch.tensor([7, 0, 3]), torch.randn(3, *shape)
    assert not t.values.any()
    t[index] = values
    assert t[index].dtype == torch.float32 and t.values.dtype == dtype
    assert torch.allclose(t[index], values, rtol=0 if dtype == torch.float32 else 2**-10, atol=1e-7)
    rest = torch.tensor([1, 2, 4, 5, 6, 8, 9])
    assert not t[rest].any()
    assert torch.equal(t[torch.tensor([3, 3, 7])], torch.stack([t[index][2], t[index][2], t[index][0]]))


def test_values_are_detached_copies():
    t = table(shape=())
    values = torch.ones(2, requires_grad=True)
    t[torch.tensor([1, 2])] = values * 2
    assert not t.values.requires_grad
    taken = t[torch.tensor([1])]
    taken.fill_(9.0)
    assert t.values[1] == 2


def test_of_a_sample_that_comes_twice_the_last_value_stays():
    t = table(shape=())
    t[torch.tensor([4, 2, 4, 4])] = torch.tensor([1.0, 2.0, 3.0, 5.0])
    assert t.values.tolist() == [0, 0, 2, 0, 5, 0, 0, 0, 0, 0]


def test_float16_keeps_three_digits():
    t = table(1, (1000,), dtype=torch.float16)
    values = torch.rand(1, 1000) * 16 / 255
    t[torch.tensor([0])] = values
    wrong = (t[torch.tensor([0])] - values).abs()
    assert 0 < wrong.max() < 16 / 255 / 1000
    assert t.values.element_size() == 2


@pytest.mark.parametrize(
    ("samples", "shape", "dtype", "size"),
    [
        (10, (), torch.float32, "40 bytes"),
        (100, (3, 20, 20), torch.float16, "234 KiB"),
        (1000, (3, 40, 40), torch.float16, "9.16 MiB"),
        (1000, (3, 40, 40), torch.float32, "18.3 MiB"),
    ],
)
def test_memory_is_told(samples, shape, dtype, size):
    said = table(samples, shape, dtype=dtype).said
    assert said == [f"test: values of {samples} samples take {size} on cpu, and in last/state.pt"]


def test_sizes_are_readable():
    # CIFAR-10 padded in float32, and ImageNet at 32 pixels in float16: the released code's tables of ATAS
    assert sample_state._readable(50_000 * 3 * 40 * 40 * 4) == "916 MiB"
    assert sample_state._readable(1_281_167 * 3 * 32 * 32 * 2) == "7.33 GiB"
    assert sample_state._readable(5 * 2**40) == "5.12e+03 GiB"


def test_fill():
    t = table(dtype=torch.float16)
    t.fill(0.5)
    assert (t.values == 0.5).all()


@pytest.mark.parametrize("chunk", [2**26, 50])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_uniform_values(monkeypatch, dtype, chunk):
    """In the bounds, spread over them, the same for a seed, and none of the global generator's draws."""
    bound = 8 / 255
    monkeypatch.setattr(sample_state, "CHUNK", chunk)
    one, again, other = (table(200, dtype=dtype) for _ in range(3))
    state = torch.get_rng_state()
    for t, seed in ((one, 5), (again, 5), (other, 6)):
        t.fill_uniform(bound, seed)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.values, again.values) and not torch.equal(one.values, other.values)
    values = np.sort(one.values.double().numpy().ravel())
    assert np.abs(values).max() <= bound * (1 if dtype == torch.float32 else 1 + 2**-11)
    assert np.abs(values - np.linspace(-bound, bound, values.size)).max() < 0.04 * bound, "the distribution's own line"
    assert not torch.equal(one.values[0], one.values[100]), "each chunk has draws of its own"


@pytest.mark.parametrize("chunk", [2**26, 50])
def test_corners(monkeypatch, chunk):
    monkeypatch.setattr(sample_state, "CHUNK", chunk)
    t = table(200)
    t.fill_uniform(0.25, 3, corners=True)
    assert set(t.values.unique().tolist()) == {-0.25, 0.25}
    assert (t.values > 0).double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_state_round_trip(tmp_path):
    t, other = table(dtype=torch.float16), table(dtype=torch.float16)
    t.fill_uniform(1.0, 0)
    state = t.state_dict()
    torch.save(state, tmp_path / "state.pt")
    t.fill(0.0)
    assert state["values"].any(), "a snapshot does not change with the table"
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.values, state["values"])
    other.fill(1.0)
    assert not torch.equal(other.values, state["values"])


def test_merge_in_one_process_changes_nothing():
    t = table()
    t[torch.tensor([2])] = torch.ones(1, 3, 4, 4)
    before = t.values.clone()
    t.merge()
    assert torch.equal(before, t.values) and not t._written.any()


PROCESS = """
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist

from timm_robust import sample_table as sample_state

rank, folder = int(sys.argv[1]), sys.argv[2]
sample_state.CHUNK = 8  # two samples at once
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
run = SimpleNamespace(num_train=6, device=torch.device("cpu"), say=lambda text: None)
out = {}
half, single = torch.float16, torch.float32
for name, shape, dtype in (("half", (2, 2), half), ("single", (2, 2), single), ("number", (), single)):
    table = sample_state.SampleTable(run, name, shape, dtype)
    table.fill(7.0)
    mine = torch.tensor([0, 1, 2] if rank == 0 else [2, 3, 4])
    table[mine] = (10.0 * (rank + 1) + mine).view(-1, *[1] * len(shape)).expand(3, *shape)
    table.merge()
    first = table.values.clone()
    if rank:
        table[torch.tensor([0])] = torch.full((1, *shape), -0.5)
    table.merge()
    out[name] = first, table.values
torch.save(out, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_merge_of_two_processes(tmp_path):
    """Everybody gets the newest of each sample; of one that both had, the first process's."""
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    running = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    complaints = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], complaints
    zero, one = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in ("half", "single", "number"):
        for stage, expected in ((0, [10, 11, 12, 23, 24, 7]), (1, [-0.5, 11, 12, 23, 24, 7])):
            assert torch.equal(zero[name][stage], one[name][stage])
            rows = zero[name][stage].reshape(6, -1)
            assert (rows == rows[:, :1]).all() and rows[:, 0].tolist() == expected


def random_view(samples: int, room: int) -> View:
    random = np.random.default_rng(0)
    top, left = (torch.from_numpy(random.integers(0, room + 1, samples)) for _ in range(2))
    side = torch.full_like(top, 5)
    return View(top, left, side, side, torch.arange(samples) % 2 == 0)


@pytest.mark.parametrize("room", [0, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_against_a_loop(channels, room):
    view = random_view(8, room)
    frames = torch.randn(8, channels, 5 + room, 5 + room)
    added = torch.randn(8, channels, 5, 5)
    windows, put = take_window(frames, view, 5), put_window(frames, view, added)
    before = frames.clone()
    for i in range(8):
        top, left = int(view.top[i]), int(view.left[i])
        expected = frames[i].clone()
        for row in range(5):
            for col in range(5):
                source = left + (4 - col if view.flip[i] else col)
                assert torch.equal(windows[i, :, row, col], frames[i, :, top + row, source])
                expected[:, top + row, source] = added[i, :, row, col]
        assert torch.equal(put[i], expected)
    assert torch.equal(frames, before), "not in place"


def test_a_window_put_back_changes_nothing():
    view, frames = random_view(8, 4), torch.randn(8, 3, 9, 9)
    assert torch.equal(put_window(frames, view, take_window(frames, view, 5)), frames)
    added = torch.randn(8, 3, 5, 5)
    assert torch.equal(take_window(put_window(frames, view, added), view, 5), added)


def test_windows_move_as_the_loader_moves_images(few_digits):
    """A table that holds the padded images gives the batch's images."""
    from timm_robust.data import load_data, make_train_loader

    split = load_data(few_digits).train
    loader = make_train_loader(split, batch_size=50, augment="crop-flip", pad=4)
    frames = torch.nn.functional.pad(split.pixels.permute(0, 3, 1, 2).float() / 255, [loader.pad] * 4)
    for batch in loader.epoch(3):
        assert torch.allclose(take_window(frames[batch.index], batch.view, 8), batch.images)


@pytest.mark.parametrize(("small", "large"), [(4, 8), (5, 20), (8, 8)])
def test_low_resolution(small, large):
    stored = torch.randn(2, 3, small, small)
    blocks = stored.repeat_interleave(large // small, 2).repeat_interleave(large // small, 3)
    assert torch.allclose(reduce(blocks, small), stored, atol=1e-6), "the mean over what a stored pixel covers"
    frames = torch.randn(2, 3, large, large)
    means = frames.double().numpy().reshape(2, 3, small, large // small, small, large // small).mean(axis=(3, 5))
    assert np.allclose(reduce(frames, small).numpy(), means, atol=1e-6)
    flat = torch.full((1, 3, small, small), 0.3)
    assert torch.allclose(enlarge(flat, large), torch.tensor(0.3))
    assert torch.allclose(reduce(enlarge(flat, large), small), flat)
    assert enlarge(stored, large).shape == frames.shape
    assert enlarge(stored, large).abs().max() <= stored.abs().max(), "no value beyond the ball"
    if small == large:
        assert torch.equal(reduce(enlarge(stored, large), small), stored)


def test_enlarging_is_linear_between_pixel_centres():
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    expected = np.interp((np.arange(8) + 0.5) / 2 - 0.5, np.arange(4), np.arange(4))
    assert np.allclose(enlarge(ramp, 8)[0, 0].numpy(), expected, atol=1e-6)
    assert torch.allclose(reduce(enlarge(ramp, 8), 4)[0, 0, :, 1:3], ramp[0, 0, :, 1:3]), "a ramp comes back"


def test_last_copies():
    assert last_copies(torch.tensor([4, 2, 4, 7, 2])).tolist() == [2, 4, 2, 3, 4]
