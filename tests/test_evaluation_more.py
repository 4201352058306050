"""More than one number: intervals, pairs, curves, masked gradients, transfer, corruptions, and their commands."""

from __future__ import annotations

import json
import math
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn

import timm_robust
from timm_robust.api import analyze as measuring
from timm_robust.api.inputs import load_eval_inputs
from timm_robust.cli import spread
from timm_robust.cli.app import app
from timm_robust.data import as_tensors, load_data
from timm_robust.errors import UserError
from timm_robust.evaluation import curve as curve_module
from timm_robust.evaluation.corruptions import ALEXNET_ERRORS, CORRUPTIONS, corruption_accuracy, mean_corruption_error
from timm_robust.evaluation.curve import accuracy_curve, grid
from timm_robust.evaluation.masking import after_noise, check_masking, zero_gradients
from timm_robust.evaluation.statistics import clopper_pearson, mcnemar, newcombe, paired, wilson
from timm_robust.evaluation.transfer import transfer
from timm_robust.report.radii import draw_radii
from timm_robust.threat import Threat

LINF, L2, L1 = Threat("Linf", 4 / 255, "4/255"), Threat("L2", 0.3, "0.3"), Threat("L1", 2.0, "2")


# --- intervals


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (50, 100), (10, 10), (4821, 10000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_intervals_are_those_of_scipy(k, n, level):
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        expected = stats.binomtest(k, n).proportion_ci(level, method)
        assert ours(k, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_by_its_definition():
    """The ends are the shares from which the observed one is exactly z standard errors away."""
    z = stats.norm.ppf(0.975)
    for end in wilson(37, 200):
        assert abs(37 / 200 - end) == pytest.approx(z * math.sqrt(end * (1 - end) / 200), rel=1e-12)


def test_newcombe_against_published_values():
    """Newcombe 1998, Table II, method 10; and the example of Fagerland, Lydersen, Laake 2013."""
    assert newcombe(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert newcombe(36, 2, 12, 0) == pytest.approx((-0.3404, -0.0569), abs=5e-5)
    assert newcombe(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)
    assert newcombe(50, 0, 0, 0)[0] < 0 < newcombe(50, 0, 0, 0)[1]


def test_newcombe_covers():
    draw = np.random.default_rng(0)
    shares = np.array([0.45, 0.1, 0.05, 0.4])
    tables = draw.multinomial(120, shares, size=2000)
    hits = sum(low <= 0.05 <= high for low, high in (newcombe(*map(int, table)) for table in tables))
    assert 0.93 <= hits / 2000 <= 0.97


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (3, 9), (40, 40), (741, 442)])
def test_mcnemar_is_a_binomial_test(b, c):
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


def test_pairs():
    found = paired([1, 1, 0, 0, 1], [True, False, True, False, False])
    assert (found.both, found.only_a, found.only_b, found.neither) == (1, 2, 1, 1)
    assert found.difference == pytest.approx(0.2) and found.low < 0.2 < found.high
    with pytest.raises(UserError, match="3 verdicts cannot be compared with 2"):
        paired([1, 1, 0], [1, 0])
    with pytest.raises(UserError, match="0 of 0 is no share"):
        paired([], [])
    with pytest.raises(UserError, match="level 95 is out of range"):
        wilson(1, 2, 95)


# --- networks


def network(classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 64, classes))
    with torch.no_grad():
        model[-1].weight.mul_(8)
    return model.eval()


def labelled(model: nn.Module, n: int = 30):
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        targets = model(images).argmax(1)
    targets[0] = (targets[0] + 1) % 2
    return images, targets


@pytest.fixture(scope="module")
def trained(few_digits):
    """A linear network on digits, by gradient descent; the images it saw."""
    (images, targets), test = few_digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    return model.eval(), *test


# --- curves


def test_a_curve_on_a_linear_network_is_known():
    """Two classes, linear: the margin falls by eps times the L1 norm of the weights, inside the box."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    images = 0.25 + 0.5 * torch.rand(60, 3, 8, 8)
    with torch.no_grad():
        targets = linear(images).argmax(1)
        margins = (linear(images)[:, 0] - linear(images)[:, 1]).double().abs()
    weight = (linear[1].weight[1] - linear[1].weight[0]).detach().double()
    radii = [0, 0.01, 0.02, 0.03, 0.2]
    told = []
    found = accuracy_curve(
        linear,
        images,
        targets,
        "Linf",
        radii[::-1],
        attack="pgd-20-1",
        batch_size=7,
        progress=lambda *a: told.append(a),
    )
    assert found.eps == tuple(radii)
    for eps, row in zip(radii, found.still_correct, strict=True):
        assert list(row) == (margins > eps * weight.abs().sum()).int().tolist()
    assert found.accuracies[0] == 1 and 0 < found.accuracies[2] < 1 and found.accuracies[-1] == 0
    assert told[-1][1:] == (60, 60)
    assert found.intervals()[2] == wilson(sum(found.still_correct[2]), 60)


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_curves_never_rise(threat):
    model = network()
    images, targets = labelled(model)
    found = accuracy_curve(model, images, targets, threat.norm, grid(threat), attack="pgd-3-1")
    assert list(found.accuracies) == sorted(found.accuracies, reverse=True)
    for smaller, larger in zip(found.still_correct, found.still_correct[1:], strict=False):
        assert all(a >= b for a, b in zip(smaller, larger, strict=True))
    assert found.accuracies[0] == pytest.approx(29 / 30) and found.accuracies[-1] < 0.5
    assert json.loads(json.dumps(found.to_dict()))["robust_accuracy"] == list(found.accuracies)


def test_the_default_radii():
    assert grid(Threat("Linf", 8 / 255, "8/255")) == [
        "0", "2/255", "4/255", "6/255", "8/255", "12/255", "16/255", "24/255", "32/255",
    ]  # fmt: skip
    assert grid(Threat("L2", 0.5, "0.5"))[-2:] == ["1.5", "2"]
    assert grid(Threat("Linf", 0.5, "0.5"), (0, 1, Fraction(2), 3)) == ["0", "0.5", "1"]


def test_autoattack_on_a_curve():
    model = network(3)
    images, targets = labelled(model, 6)
    found = accuracy_curve(model, images, targets, "Linf", ["0", "40/255"], attack="autoattack-rand")
    assert found.attack == "autoattack-rand"
    assert found.accuracies[0] == pytest.approx(5 / 6) and found.accuracies[-1] < 5 / 6


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_picture(tmp_path, ending):
    model, other = network(), network(seed=1)
    images, targets = labelled(model)
    curves = {
        name: accuracy_curve(one, images, targets, "Linf", ["0", "4/255", "8/255"], attack="fgsm")
        for name, one in (("first", model), ("second $x$ & <y>", other))
    }
    file = tmp_path / f"curve.{ending}"
    draw_radii(curves, [file], title="Accuracy", trained=4 / 255)
    assert file.stat().st_size > 1000
    if ending == "svg":
        text = file.read_text()
        assert "first" in text and "second $x$ &amp; &lt;y&gt;" in text and "trained" in text
        assert f"{curves['first'].accuracies[1]:.1%} at 4/255" in text
        assert "http" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
            "http://creativecommons.org", ""
        ).replace("https://matplotlib.org", "")


# --- masked gradients


def failed(checks) -> set[str]:
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize(
    "threat", [Threat("Linf", 0.05, "0.05"), Threat("L2", 0.4, "0.4"), Threat("L1", 2.0, "2")], ids=str
)
def test_an_honest_network_shows_no_sign(trained, threat):
    model, images, targets = trained
    checks = check_masking(model, images, targets, threat, draws=20)
    assert failed(checks) == set() and len(checks) == 5
    numbers = {name: value for check in checks for name, value in check.numbers.items()}
    assert numbers["pgd-50-1"] < numbers["best of 20 draws"] and 0 < numbers["fgsm"] < 1
    assert all(check.meaning for check in checks) and json.dumps([check.to_dict() for check in checks])


class Rounding(nn.Module):
    """Pixels with so few levels: the gradient is zero almost everywhere."""

    def __init__(self, inner: nn.Module, levels: int = 8):
        super().__init__()
        self.inner, self.levels = inner, levels

    def forward(self, x):
        return self.inner((x * self.levels).round() / self.levels)


def test_a_rounding_layer_is_seen(trained):
    model, images, targets = trained
    checks = check_masking(Rounding(model).eval(), images, targets, Threat("Linf", 0.3, "0.3"), draws=50)
    assert {"gradients are zero", "random noise beats the gradient", "an unbounded attack fails"} <= failed(checks)
    zero = next(check for check in checks if check.name == "gradients are zero").numbers
    assert min(zero.values()) > 0.8, "of all images that are classified correctly"


def test_saturated_logits_are_seen(trained):
    model, images, targets = trained

    class Hot(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x) * 1e4

    checks = check_masking(Hot().eval(), images, targets, Threat("Linf", 0.05, "0.05"), draws=3)
    assert "gradients are zero" in failed(checks)
    by_loss, by_margin = zero_gradients(Hot().eval(), images, targets)
    assert by_loss > 0.5 and by_margin == 0


class AstrayOffGrid(nn.Module):
    """The gradient is right at clean digits, whose levels are 255ths, and turned around everywhere else."""

    class Turn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            on = ((x * 255 - (x * 255).round()).abs() < 1e-3).flatten(1).all(1)
            ctx.save_for_backward(on)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            (on,) = ctx.saved_tensors
            return torch.where(on.view(-1, 1, 1, 1), grad, -grad)

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(self.Turn.apply(x))


def test_misleading_gradients_are_seen(trained):
    model, images, targets = trained
    checks = check_masking(AstrayOffGrid(model).eval(), images, targets, Threat("Linf", 0.05, "0.05"), draws=3)
    assert {"one step beats many", "an unbounded attack fails"} <= failed(checks)


def test_steps_that_undo_each_other_are_seen(trained):
    model, images, targets = trained

    class Fickle(AstrayOffGrid):
        """Every second gradient is turned around, as noise of a random defense may do."""

        calls = 0

        def forward(self, x):
            if x.requires_grad:
                Fickle.calls += 1
                x.register_hook(lambda grad, sign=(-1) ** (Fickle.calls - 1): sign * grad)
            return self.inner(x)

    checks = check_masking(Fickle(model).eval(), images, targets, Threat("Linf", 0.2, "0.2"), draws=3)
    assert "accuracy rises with steps" in failed(checks)


def test_noise_has_full_length_and_stays_inside(trained):
    _, images, targets = trained
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            seen.append(x)
            return nn.functional.one_hot(targets[: len(x)], 10).float()

    images = 0.4 + 0.2 * images[:10]  # far enough from the ends of the range
    for threat, order in ((LINF, math.inf), (L2, 2), (L1, 1)):
        seen.clear()
        still_correct = after_noise(Spy().eval(), images, targets[:10], threat, torch.ones(10).bool(), draws=2)
        assert still_correct.all() and len(seen) == 2 and not torch.equal(*seen)
        for x in seen:
            assert torch.allclose(
                (x - images).flatten(1).norm(dim=1, p=order), torch.full((10,), threat.eps), rtol=1e-3
            )


# --- transfer


def test_transfer_from_itself_is_the_attack_itself():
    model = network()
    images, targets = labelled(model)
    found = transfer(model, {"itself": model}, images, targets, LINF, attack="pgd-10-1", seed=2, batch_size=9)
    from timm_robust.evaluation.accuracy import robust_correct_of
    from timm_robust.evaluation.attack_spec import parse_attack

    direct = robust_correct_of(model, images, targets, LINF, parse_attack("pgd-10-1"), seed=2, batch_size=9)
    assert list(found.still_correct["itself"]) == direct.int().tolist()


def test_other_sources_are_weaker_and_the_worst_is_over_all():
    model, near, far = network(), network(), network(seed=5)
    with torch.no_grad():
        near[-1].weight.add_(0.3 * torch.randn_like(near[-1].weight))
    images, targets = labelled(model, 40)
    sources = {"near": near, "far": far}
    for attack in ("pgd-10-2", "torchattacks:MIFGSM:steps=10", "fgsm", "cw-linf"):
        found = transfer(model, sources, images, targets, LINF, attack=attack)
        assert found.accuracies["near"] < found.accuracies["far"] <= sum(found.clean) / 40
        assert list(found.worst) == [a & b for a, b in zip(*found.still_correct.values(), strict=True)]
        assert not any(found.worst[i] and not found.clean[i] for i in range(40))
    assert found.to_dict()["robust_accuracy_worst"] == pytest.approx(sum(found.worst) / 40)


def test_sources_that_do_not_fit():
    model = network()
    images, targets = labelled(model, 4)
    with pytest.raises(UserError, match="source 'three' has 3 classes, the target 10"):
        transfer(model, {"three": network(3)}, images, targets, LINF)
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10)).eval()
    with pytest.raises(UserError, match="source 'grey' cannot take images of 3x8x8"):
        transfer(model, {"grey": grey}, images, targets, LINF)
    with pytest.raises(UserError, match="in train mode"):
        transfer(model, {"a": network().train()}, images, targets, LINF)
    with pytest.raises(UserError, match="at least one source"):
        transfer(model, {}, images, targets, LINF)
    for attack in ("apgd-ce", "autoattack", "clean", "torchattacks:FAB"):
        with pytest.raises(UserError, match="stops where the source falls"):
            transfer(model, {"a": model}, images, targets, LINF, attack=attack)


def test_image_sizes_of_checkpoints_must_agree(small_model):
    from timm_robust.models.factory import build_model

    other = build_model(
        "resnet18", num_classes=10, image_size=16, model_kwargs={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        data_mean=[0.3] * 3, data_std=[0.37] * 3,
    )  # fmt: skip
    images, targets = torch.rand(2, 3, 8, 8), torch.zeros(2).long()
    with pytest.raises(UserError, match="source 'big' has image size 16, the target 8"):
        transfer(small_model.eval(), {"big": other.eval()}, images, targets, LINF)


# --- corruptions


def noisy(images: torch.Tensor, severity: int, seed: int) -> np.ndarray:
    """uint8 [N, H, W, 3] with noise that grows with the severity."""
    draw = np.random.default_rng(seed)
    pixels = images.permute(0, 2, 3, 1).numpy() * 255
    return (pixels + draw.normal(0, 12 * severity, pixels.shape)).clip(0, 255).round().astype(np.uint8)


@pytest.fixture
def cifar_c(tmp_path, few_digits) -> Path:
    """15 corruptions of 20 digits in the format of CIFAR-10-C."""
    images, targets = few_digits[1][0][:20], few_digits[1][1][:20]
    folder = tmp_path / "C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(targets.numpy(), 5).astype(np.uint8))
    for number, name in enumerate(CORRUPTIONS):
        np.save(folder / f"{name}.npy", np.concatenate([noisy(images, s, number) for s in range(1, 6)]))
    return folder


def test_arrays_of_corruptions(trained, cifar_c):
    model = trained[0]
    told = []
    found = corruption_accuracy(model, cifar_c, n_examples=15, batch_size=4, progress=lambda *a: told.append(a))
    assert list(found.accuracies) == list(CORRUPTIONS) and found.n_examples == 15 and found.mce is None
    labels = np.load(cifar_c / "labels.npy")
    for name, row in found.accuracies.items():
        pixels = np.load(cifar_c / f"{name}.npy").astype(np.float64) / 255
        for severity, value in enumerate(row):
            part = slice(20 * severity, 20 * severity + 15)
            with torch.no_grad():
                logits = model(torch.from_numpy(pixels[part]).permute(0, 3, 1, 2).float())
            assert value == pytest.approx(np.mean(logits.argmax(1).numpy() == labels[part]))
    assert found.mean == pytest.approx(np.mean(list(found.accuracies.values())))
    assert found.by_severity[0] > found.by_severity[4]
    assert told[-1] == ("jpeg_compression 5", 75, 75)
    assert corruption_accuracy(model, cifar_c, corruptions=["fog"]).n_examples == 20


@pytest.mark.parametrize("deep", [False, True], ids=["flat", "grouped"])
def test_folders_of_corruptions(trained, few_digits, tmp_path, deep):
    """As ImageNet-C has them; the first images are by file name, so that classes mix."""
    images, targets = few_digits[1][0][:20], few_digits[1][1][:20]
    names = sorted({str(int(label)) for label in targets})
    for severity in range(1, 6):
        for i, pixels in enumerate(noisy(images, severity, 3)):
            place = tmp_path / ("weather/fog" if deep else "fog") / str(severity) / str(int(targets[i]))
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"val_{i:04}.png")
    model = trained[0]
    classes = [str(number) for number in range(10)]
    found = corruption_accuracy(model, tmp_path, class_names=classes, image_size=8, n_examples=12, corruptions=["fog"])
    for severity, value in enumerate(found.accuracies["fog"], 1):
        x = torch.from_numpy(noisy(images, severity, 3)[:12]).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            assert value == pytest.approx((model(x).argmax(1) == targets[:12]).float().mean().item())
    with pytest.raises(UserError, match="unknown class folder in .*fog/1"):
        corruption_accuracy(model, tmp_path, class_names=[*names[1:], "x"], image_size=8, corruptions=["fog"])
    with pytest.raises(UserError, match="lacks gaussian_noise/, shot_noise/, impulse_noise/ and 11 more"):
        corruption_accuracy(model, tmp_path, image_size=8)


def test_mce_is_relative_to_alexnet():
    assert len(CORRUPTIONS) == 15
    alexnet = {name: (1 - error,) * 5 for name, error in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(alexnet) == pytest.approx(1)
    half = {name: (1 - error / 2,) * 5 for name, error in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(half) == pytest.approx(0.5)
    # ResNet-50's published errors in percent (Hendrycks and Dietterich, Table 1): mCE 76.7
    resnet50 = dict(zip(CORRUPTIONS, (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77), strict=True))
    relative = {name: (1 - ce / 100 * ALEXNET_ERRORS[name],) * 5 for name, ce in resnet50.items()}
    assert mean_corruption_error(relative) == pytest.approx(0.767, abs=0.002)


def test_mistakes_with_corruptions(trained, cifar_c, tmp_path):
    model = trained[0]
    with pytest.raises(UserError, match="n_examples is 21, .* has 20 images for each severity"):
        corruption_accuracy(model, cifar_c, n_examples=21)
    with pytest.raises(UserError, match="unknown corruption 'fogg': did you mean fog"):
        corruption_accuracy(model, cifar_c, corruptions=["fogg"])
    with pytest.raises(UserError, match="'nowhere' is no folder"):
        corruption_accuracy(model, "nowhere")
    with pytest.raises(UserError, match="class number 9, the model has only 3 classes"):
        corruption_accuracy(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval(), cifar_c)
    content = (cifar_c / "fog.npy").read_bytes()
    (cifar_c / "fog.npy").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="fog.npy cannot be read, it may be truncated"):
        corruption_accuracy(model, cifar_c, corruptions=["fog"])
    np.save(cifar_c / "fog.npy", np.zeros((100, 8, 8, 3)))
    with pytest.raises(UserError, match=r"fog.npy is float64 \[100, 8, 8, 3\]: expected uint8 \[100, H, W, 3\]"):
        corruption_accuracy(model, cifar_c, corruptions=["fog"])
    (cifar_c / "snow.npy").unlink()
    with pytest.raises(UserError, match="lacks snow.npy"):
        corruption_accuracy(model, cifar_c)


# --- the functions and commands of a user


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs a command line in this process; returns what it printed."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(args=spread([str(one) for one in arguments]), prog_name="timm-robust")
        run.status = ended.value.code
        return capsys.readouterr().out

    return run


def test_commands(train_small, tmp_path, cifar_c, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = train_small("fgsm-rs", output="one", data="digits", epochs=1).output
    two = train_small("fgsm-rs", output="two", data="digits", epochs=1, seed=1).output
    out = command(
        "curve", one, two, "--eps-values", "0", "8/255", "--attack", "fgsm", "--n-examples", "20", "--json", "c.json"
    )
    assert command.status == 0 and "8/255" in out and "picture: curve.svg" in out
    record = json.loads(Path("c.json").read_text())
    assert list(record["curves"]) == [str(one), str(two)] and record["curves"][str(one)]["n_examples"] == 20
    svg = Path("curve.svg").read_text()
    assert ">one " in svg and ">two " in svg, "without the folders that they share"

    out = command("masking", one, "--n-examples", "20", "--draws", "3", "--json", "m.json")
    record = json.loads(Path("m.json").read_text())
    assert len(record["checks"]) == 5 and record["threat"]["eps_text"] == "8/255" and "random noise beats" in out
    assert command.status == int(any(not check["passed"] for check in record["checks"]))

    out = command(
        "transfer", one, "--from", two, one, "--attack", "torchattacks:MIFGSM", "--n-examples", "20", "--json", "t.json"
    )
    record = json.loads(Path("t.json").read_text())
    assert command.status == 0 and "all of them" in out and record["n_examples"] == 20
    assert set(record["robust_accuracy"]) == {str(one), str(two)}

    out = command("corruptions", one, "--data", cifar_c, "--only", "fog", "snow", "--json", "k.json")
    assert command.status == 0 and "snow" in out and "pixelate" not in out
    assert set(json.loads(Path("k.json").read_text())["accuracy"]) == {"fog", "snow"}

    for name, folder in (("a", one), ("b", two)):
        timm_robust.evaluate(folder, attacks=["fgsm"], n_examples=30, json=f"{name}.json", quiet=True)
    out = command("paired", "a.json", "b.json")
    a, b = (json.loads(Path(f"{name}.json").read_text())["attacks"]["fgsm"]["robust"] for name in "ab")
    assert command.status == 0 and f"{100 * (sum(a) - sum(b)) / 30:+.2f}" in out


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    timm_robust.train(
        model="resnet18", method="fgsm-rs", data="digits", epochs=1, output=output, test_attacks=[], quiet=True,
        model_kwargs={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        recipe_args={"check_attack": "pgd-2-1"},
    )  # fmt: skip
    return output


def test_records_of_other_images_are_not_compared(tmp_path):
    record = {
        "data": "digits", "n_examples": 3, "seed": 0, "threat": {"norm": "Linf", "eps": 0.03, "eps_text": "8/255"},
        "attacks": {"fgsm": {"robust": [1, 0, 1]}},
    }  # fmt: skip
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps(record))
    for change, message in (
        ({"data": "photos"}, "the records differ in data: 'digits' in .*, 'photos' in"),
        ({"n_examples": 2}, "differ in n_examples: 3 in .*, 2 in"),
        ({"seed": 1}, "differ in seed"),
        (
            {"threat": {"norm": "Linf", "eps": 0.01, "eps_text": "4/255"}},
            "differ in threat: Linf 8/255 in .*, Linf 4/255",
        ),
        ({"attacks": {"pgd-10-1": {"robust": [1]}}}, "share no attack: fgsm in .*, pgd-10-1 in"),
        ({"attacks": {"fgsm": {"robust": [1]}}}, "fgsm was run on 3 images in .*, on 1 in"),
        ({"attacks": {"fgsm": {}}}, "is no record with a verdict per image"),
        ({"attacks": None}, "is no record with a verdict per image"),
    ):
        b.write_text(json.dumps({**record, **change}))
        with pytest.raises(UserError, match=message):
            measuring.paired(a, b)
    b.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        measuring.paired(a, b)
    b.write_text(json.dumps(record))
    assert measuring.paired(a, b)["fgsm"].p_value == 1


def test_checkpoints_of_other_data_are_not_mixed(shared_run, tmp_path):
    import shutil

    metadata = json.loads((shared_run / "best/model.json").read_text())
    for name, change in (("data", {"name": str(tmp_path)}), ("classes", {"class_names": [*"abcdefghij"]})):
        shutil.copytree(shared_run / "best", tmp_path / name)
        (tmp_path / name / "model.json").write_text(json.dumps({**metadata, "data": {**metadata["data"], **change}}))
    with pytest.raises(UserError, match="source '.*classes' has class 'a' where the target has '0'"):
        measuring.transfer(shared_run, [tmp_path / "classes"], n_examples=5, quiet=True)
    for label in range(10):
        for file in ("train/{}/0.png", "train/{}/1.png", "test/{}/0.png"):
            place = tmp_path / file.format(label)
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(place)
    with pytest.raises(UserError, match="was trained on .*, the first checkpoint on digits: pass data"):
        measuring.curve([shared_run, tmp_path / "data"], eps_values=[0], n_examples=5, quiet=True)
    found = measuring.curve([shared_run, tmp_path / "data"], "digits", eps_values=[0], n_examples=5, quiet=True)
    assert len(found) == 2


def test_a_killed_curve_goes_on(shared_run, monkeypatch):
    settings = {"eps_values": ["0", "2/255", "8/255"], "attack": "pgd-2-1", "n_examples": 20, "quiet": True}
    (whole,) = measuring.curve([shared_run], **settings).values()
    kept = shared_run / "best/curve.unfinished"
    assert not kept.exists()
    run, calls = curve_module.robust_correct_of, []

    def killed(*parts, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*parts, **settings)

    monkeypatch.setattr(curve_module, "robust_correct_of", killed)
    with pytest.raises(KeyboardInterrupt):
        measuring.curve([shared_run], **settings)
    with pytest.raises(UserError, match="differs in seed .*pass --restart"):
        measuring.curve([shared_run], seed=1, **settings)
    assert len(calls) == 3
    (again,) = measuring.curve([shared_run], **settings).values()
    assert again == whole and len(calls) == 4 and not kept.exists()


def test_a_folder_with_test_images_only_will_do(shared_run, tmp_path):
    for label in range(10):
        place = tmp_path / f"test/{label}/0.png"
        place.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the classes are those of the training
        assert timm_robust.evaluate(shared_run, tmp_path, attacks=["clean"], quiet=True).n_examples == 10
    with pytest.raises(UserError, match="has no train/ inside"):
        timm_robust.train("resnet18", "pgd", tmp_path)


def test_classes_of_another_name_are_pointed_out(shared_run, tmp_path):
    import shutil

    shutil.copytree(shared_run / "best", tmp_path / "named")
    metadata = json.loads((tmp_path / "named/model.json").read_text())
    metadata["data"]["class_names"] = [*"abcdefghij"]
    (tmp_path / "named/model.json").write_text(json.dumps(metadata))
    for label in "abcdefghji":
        place = tmp_path / f"test/{'k' if label == 'j' else label}/0.png"
        place.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place)
    with pytest.warns(UserWarning, match="learned 'j' where .* has 'k', and 0 more of 10 classes"):
        timm_robust.evaluate(tmp_path / "named", tmp_path, attacks=["clean"], quiet=True)


def test_a_part_of_the_classes_is_matched_by_name(shared_run, tmp_path):
    images, labels = as_tensors(load_data("digits").test, 60)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        if label in (3, 8):
            place = tmp_path / f"test/{label}/{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(place)
    subject = load_eval_inputs(shared_run, tmp_path)
    assert set(subject.targets.tolist()) == {3, 8}
    chosen = (labels == 3) | (labels == 8)
    with torch.no_grad():
        right = timm_robust.load(shared_run)(images[chosen]).argmax(1) == labels[chosen]
    result = timm_robust.evaluate(shared_run, tmp_path, attacks=["clean"], quiet=True)
    assert result.clean_accuracy == pytest.approx(right.double().mean().item())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: measuring.curve([run], out="curve.jpx"), "expected a name that ends in .svg"),
        (lambda run: measuring.curve([run], out="nowhere/curve.svg"), "the folder of the picture .* does not exist"),
        (lambda run: measuring.curve([run], attack="pgdd"), "unknown attack 'pgdd'"),
        (lambda run: measuring.curve([run], eps_values=["8"], n_examples=5), "did you mean 8/255"),
        (lambda run: measuring.curve([]), "a curve needs a checkpoint"),
        (lambda run: measuring.masking(run, json="nowhere/m.json"), "the folder of the record"),
        (lambda run: measuring.masking(run, draws=0), "draws is 0: expected at least 1"),
        (lambda run: measuring.masking(run, n_examples=999), "n_examples is 999, the test split of digits has only"),
        (lambda run: measuring.transfer(run, ["nowhere"], n_examples=5), "'nowhere' does not exist"),
    ],
)
def test_mistakes_of_a_user(shared_run, call, message):
    run = shared_run
    with pytest.raises(UserError, match=message):
        call(run)
