"""Evaluation of a k-NN classifier on a network's features under adaptive attacks.

    python -m timm_robust_plugins.ssat.evaluate RUN [--eps 8/255 16/255] [--examples 1000] [--json FILE]

The vote has no gradient, so gradient attacks on it say nothing: it is attacked in feature space (two attacks), through
its surrogate (transfer) and by queries alone (Square), and an image counts as robust only if it withstands all.
AutoAttack runs on the surrogate, soft k-NN, whose gradient is exact. Both are reported. The database holds the training
images; the network is in eval mode; eps is in units of the [0, 1] pixel range. DSR, the defence success rate, is the
fraction of correctly voted images that are still correct under attack: accuracy times DSR is robust accuracy.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timm_robust.attacks.attacker import Attacker
from timm_robust.data import DataBundle, Split, as_tensors, load_data, make_eval_loader
from timm_robust.errors import UserError, unknown
from timm_robust.evaluation.autoattack import run_autoattack
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.evaluation.settings import EvalSettings
from timm_robust.models.pixel_model import PixelModel
from timm_robust.runs.checkpoint import find_checkpoint, load, read_metadata
from timm_robust.threat import Threat, make_threat
from timm_robust.utils.environment import hardware, versions
from timm_robust.utils.files import write_json
from timm_robust.utils.random import preserve_rng_state

from .knn import Neighbours, SoftVote, Vote, credibility, fit_temperature
from .options import SsatOptions
from .pgd_knn import PGDkNN
from .representation import Encoder

ON_VOTE = ("pgd-knn", "pgd-knn-balanced", "transfer", "square")
ATTACKS = (*ON_VOTE, "autoattack")
"""Attacks on the vote, and on the surrogate."""

Way = Callable[[Tensor, Tensor], Tensor]


@dataclass
class KNNClassifier:
    """A network as a k-NN classifier.

    Attributes:
        encoder, vote, soft: modules in eval mode, images in [0, 1] -> features, vote counts, logits.
        calibration: vote counts and classes of the held-out images.
        agreement: fraction of the held-out images on which surrogate and vote agree.
    """

    encoder: Encoder
    vote: Vote
    soft: SoftVote
    calibration: tuple[Tensor, Tensor]
    agreement: float

    def credibility(self, images: Tensor) -> Tensor:
        """Credibility of each image's vote, [N]; see `knn.credibility`."""
        with torch.no_grad():
            return credibility(self.vote(images).long(), *self.calibration)


def classifier(model: PixelModel, bundle: DataBundle, *, k: int = 75, normalise: bool = True) -> KNNClassifier:
    """The k-NN classifier of a network, with the training images as database, calibrated on the validation images.

    Args:
        model: network; the database is kept on its device.
        bundle: data that it was trained on.
        k: number of neighbours that vote.
        normalise: normalise features to length 1.
    """
    encoder = Encoder(model, normalise=normalise).eval()
    index = Neighbours(*_features(encoder, bundle.train), bundle.num_classes, k)
    queries, targets = _features(encoder, bundle.val)
    tau, agreement = fit_temperature(index, queries)
    soft = SoftVote(encoder, index, tau).eval()
    return KNNClassifier(encoder, Vote(encoder, index).eval(), soft, (index.counts(queries), targets), agreement)


def evaluate(
    checkpoint: str | Path,
    data: Any = None,
    *,
    data_dir: str | None = None,
    eps: Sequence[str | float] = ("8/255", "16/255"),
    attacks: Sequence[str] = ATTACKS,
    n_examples: int = 1000,
    steps: int = 20,
    queries: int = 5000,
    batch_size: int = 250,
    seed: int = 0,
    device: str | None = None,
    json: str | Path | None = None,
) -> dict[str, Any]:
    """Measures the vote and its surrogate on the first test images.

    Args:
        checkpoint: run or checkpoint of any method; k, normalisation and guides are those of its training, else ssat's
            defaults.
        data: data set, as in `timm_robust.train`; default: the one that the checkpoint's metadata names.
        data_dir: folder of timm data sets.
        eps: Linf radii.
        attacks: names from `ATTACKS`.
        n_examples: number of test images, at most all.
        steps: steps of size eps / 4 of the attacks in feature space and of the transferred one; random start.
        queries: queries of Square.
        batch_size: images per batch.
        seed: random seed.
        device: device; default: a GPU if available.
        json: file for the record.

    Returns:
        plain values: "knn" and "surrogate" without attack, and "radii" with accuracies and DSR under each attack.

    Raises:
        UserError: no such checkpoint or attack, or data with another number of classes.
    """
    for name in attacks:
        if name not in ATTACKS:
            raise unknown("attack", name, ATTACKS)
    metadata = read_metadata(checkpoint)
    data = metadata["data"]["name"] if data is None else data
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    size = metadata["model"]["image_size"]
    bundle = load_data(data, image_size=size, seed=metadata["seed"], device=device, data_dir=data_dir)
    if bundle.num_classes != metadata["model"]["num_classes"]:
        raise UserError(
            f"{str(checkpoint)!r} knows {metadata['model']['num_classes']} classes, not {bundle.num_classes}"
        )
    options = SsatOptions(**metadata["method_args"]) if metadata["method"] == "ssat" else SsatOptions()
    subject = classifier(load(checkpoint, device=device), bundle, k=options.k, normalise=options.normalise)
    images, targets = (part.to(device) for part in as_tensors(bundle.test, min(n_examples, len(bundle.test))))
    right = torch.cat([_is_right(subject.vote, *part) for part in _parts(batch_size, images, targets)])
    soft = torch.cat([_is_right(subject.soft, *part) for part in _parts(batch_size, images, targets)])
    trust = torch.cat([subject.credibility(*part) for part in _parts(batch_size, images)])
    record: dict[str, Any] = {
        "checkpoint": str(find_checkpoint(checkpoint)),
        "data": bundle.name,
        "n_examples": len(images),
        "database": len(bundle.train),
        "k": subject.vote.index.k,
        "attack": {"steps": steps, "guides": options.guides, "queries": queries, "seed": seed},
        "knn": {"clean_accuracy": _share(right), "credibility": _share(trust)},
        "surrogate": {"clean_accuracy": _share(soft), "tau": subject.soft.tau, "agreement": subject.agreement},
        "radii": {},
        "versions": versions(),
        "hardware": hardware(),
        "date": datetime.date.today().isoformat(),
    }
    for radius in eps:
        threat = make_threat("Linf", radius, image_size=bundle.image_size)
        ways = on_vote(subject, threat, guides=options.guides, steps=steps, queries=queries)
        found: dict[str, Any] = {}
        worst = right.clone()
        for name in [name for name in ON_VOTE if name in attacks]:
            still_correct = right.clone()
            still_correct[right] = _withstood(subject.vote, ways[name], images[right], targets[right], batch_size, seed)
            found[name] = _rates(still_correct, right)
            worst &= still_correct
        if found:
            found["worst"] = _rates(worst, right)
        if "autoattack" in attacks:
            inputs = EvalInputs(subject.soft, images, targets, threat, batch_size=batch_size)
            outcome = run_autoattack(inputs, settings=EvalSettings(batch_size, seed))
            found["autoattack"] = {
                "accuracy": _share(outcome.robust),
                "after": outcome.after,
                "flags": outcome.flags,
                "implementation": outcome.implementation,
            }
        record["radii"][threat.eps_text] = found
    if json is not None:
        write_json(Path(json), record)
    return record


def on_vote(subject: KNNClassifier, threat: Threat, *, guides: int, steps: int, queries: int) -> dict[str, Way]:
    """Attacks on the vote by name, (images, targets) -> adversarial images; see `evaluate`."""
    features, soft, vote = (Attacker(model, threat) for model in (subject.encoder, subject.soft, subject.vote))
    alpha = threat.eps / 4

    def in_features(guide: str) -> Way:
        attack = PGDkNN(features.view, subject.vote.index, threat.eps, alpha, steps, guides, guide, best=True)
        return lambda images, targets: features(images, targets, attack)

    return {
        "pgd-knn": in_features("wrong-class"),
        "pgd-knn-balanced": in_features("balanced"),
        "transfer": lambda images, targets: soft(images, targets, "pgd", steps=steps, alpha=alpha, random_start=True),
        "square": lambda images, targets: vote(images, targets, "square", n_queries=queries),
    }


def _withstood(vote: Vote, way: Way, images: Tensor, targets: Tensor, batch_size: int, seed: int) -> Tensor:
    """Whether the vote is still correct after one attack, bool [N]."""
    still_correct = torch.zeros(0, dtype=torch.bool, device=images.device)
    with preserve_rng_state(seed):
        for part, right in _parts(batch_size, images, targets) if len(images) else ():
            still_correct = torch.cat([still_correct, _is_right(vote, way(part, right), right)])
    return still_correct


def _features(encoder: Encoder, split: Split) -> tuple[Tensor, Tensor]:
    """Features and classes of all images of a split, on the encoder's device."""
    device = next(encoder.parameters()).device
    with torch.no_grad():
        batches = make_eval_loader(split, batch_size=250, device=device)
        found = [(encoder(batch.images), batch.targets) for batch in batches]
    return torch.cat([one for one, _ in found]), torch.cat([other for _, other in found])


def _parts(size: int, *values: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(value.split(size) for value in values), strict=True)


@torch.no_grad()
def _is_right(model: torch.nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return model(images).argmax(1) == targets


def _share(values: Tensor) -> float:
    return round(values.float().mean().item(), 4)


def _rates(still_correct: Tensor, right: Tensor) -> dict[str, float]:
    """Robust accuracy and DSR; the latter is 1 if no image was right."""
    return {"accuracy": _share(still_correct), "dsr": _share(still_correct[right]) if right.any() else 1.0}


def table(record: Mapping[str, Any]) -> str:
    """The record as a table of text."""
    knn, soft = record["knn"], record["surrogate"]
    lines = [
        f"{record['data']}, n = {record['n_examples']}, {record['k']} of {record['database']} neighbours vote",
        f"clean accuracy: vote {knn['clean_accuracy']:.1%} (credibility {knn['credibility']:.2f}), surrogate "
        f"{soft['clean_accuracy']:.1%} (agrees with {soft['agreement']:.1%} of the votes)",
    ]
    for radius, found in record["radii"].items():
        for name, one in found.items():
            who = "surrogate" if name == "autoattack" else "vote"
            rate = f"  DSR {one['dsr']:.3f}" if "dsr" in one else ""
            lines.append(f"{radius:>8}  {who:<9} {name:<17} {one['accuracy']:6.1%}{rate}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="run or checkpoint folder")
    parser.add_argument("--data", help="data set; default: the one it was trained on")
    parser.add_argument("--data-dir", help="folder of timm data sets")
    parser.add_argument("--eps", nargs="+", default=["8/255", "16/255"])
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        record = evaluate(
            arguments.checkpoint,
            arguments.data,
            data_dir=arguments.data_dir,
            eps=arguments.eps,
            attacks=arguments.attacks,
            n_examples=arguments.examples,
            json=arguments.json,
        )
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print(table(record))


if __name__ == "__main__":
    main()
