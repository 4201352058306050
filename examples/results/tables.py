"""Generated parts of README.md, of the benchmarks' pages and of the method cards, from committed records and options.

    python examples/results/tables.py [--check]

Such a part stands between `<!-- options NAME -->`, `<!-- evidence NAME -->`, `<!-- methods -->`, `<!-- full-size -->`,
`<!-- step-cost -->`, `<!-- allocator -->`, `<!-- composition -->`, `<!-- autoattack -->` or `<!-- agreement -->` and
`<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from timm_robust.options import describe
from timm_robust.plugin import DefenseSpec, DistillerSpec, ModifierSpec, get_manager

ROOT = Path(__file__).resolve().parents[2]
KINDS = "options|evidence|methods|full-size|step-cost|allocator|composition|autoattack|agreement"
PART = re.compile(rf"<!-- ({KINDS})(?: ([a-z0-9-]+))? -->\n.*?<!-- end -->", re.DOTALL)
RESULTS = "../../examples/results"
"""From a method card."""

FULL = re.compile(r"cifar10-(preact-)?resnet18-")
"""Names of full-size records."""


def records() -> list[dict[str, Any]]:
    """Committed records, by name."""
    return [json.loads(path.read_text()) for path in sorted((ROOT / "examples/results").glob("*.json"))]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def options(name: str) -> str:
    """The options of a method, modifier or distiller."""
    manager = get_manager()
    others = ((ModifierSpec, manager.modifiers()), (DistillerSpec, manager.distillers()))
    kind = next((kind for kind, names in others if name in names), DefenseSpec)
    found = describe(manager.load_config(name, kind))
    if not found:
        return "None."
    rows = [[f"`{o.name}`", f"`{o.default}`", o.unit or "-", o.range or o.type, o.help, o.source or "-"] for o in found]
    return table(["option", "default", "unit", "range", "meaning", "source"], rows)


def percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def attack(record: dict[str, Any], name: str) -> str:
    entry = record["attacks"].get(name)
    return "not measured" if entry is None else f"{percent(entry['robust_accuracy'])} (n = {entry['n_examples']})"


def network(record: dict[str, Any]) -> str:
    parts = [record["model"] + (" (small)" if record["model_kwargs"] else ""), record["activation"]]
    parts += record.get("modifiers", {})
    return ", ".join(part for part in parts if part)


def evidence(method: str) -> str:
    """Our own numbers of a method or modifier, with the command of each."""
    makers = (trained, collapse, overfitting, distillation, self_supervised, cost)
    parts = [part for maker in makers if (part := maker(method))]
    return "\n\n".join(parts) or "Not measured."


def trained(method: str) -> str:
    """What finished runs reached."""
    found = [r for r in records() if r.get("method") == method or method in r.get("modifiers", {})]
    if not found:
        return ""
    rows = [
        [
            network(r),
            f"{r['data']}, {r['threat']['norm']} {r['threat']['eps_text']}",
            str(r["epochs"]),
            f"{percent(r['clean_accuracy'])} (n = {r['n_examples']})",
            attack(r, "pgd-10-1"),
            attack(r, "autoattack"),
            f"{r['seconds_per_epoch']:.0f}",
            f"`{r['name']}`",
        ]
        for r in found
    ]
    header = ["network", "data, threat", "epochs", "clean", "PGD-10", "AutoAttack", "s / epoch", "record"]
    lines = [r["command"] for r in found]
    for r in found:  # fewer images than `train` itself would measure, or more
        n = r["attacks"].get("autoattack", {}).get("n_examples", r["n_examples"])
        if n != r["n_examples"]:
            lines.append(f"timm-robust evaluate RUN --attack autoattack --examples {n}")
    commands = "\n".join(f"    {line}" for line in dict.fromkeys(lines))
    machine = "; ".join(sorted({f"{r['hardware']}, seed {r['seed']}, {r['date']}" for r in found}))
    notes = "".join(f" `{r['name']}`: {r['note']}." for r in found if r.get("note"))
    where = f"Measured on the test split, best checkpoint; {machine}.{notes} Commands:"
    return f"{table(header, rows)}\n\n{where}\n\n{commands}"


def collapse(method: str) -> str:
    """Robust accuracy over the epochs of examples/cifar10/collapse.py, where catastrophic overfitting would show."""
    found = [r for r in records() if r["name"].startswith("collapse-") and method in r["methods"]]
    if not found:
        return ""
    rows = []
    for r in found:
        run = r["methods"][method]
        seen = sorted({event["epoch"] for event in run["events"]})
        curve = " ".join(f"{100 * row['val_robust']:.0f}" for row in run["curve"])
        last = f"{percent(run['test']['clean_accuracy'])}, {percent(run['test']['pgd-10-1'])}"
        watch = f"collapse in epoch {', '.join(map(str, seen))}" if seen else "nothing"
        rows.append([r["eps"], str(r["seed"]), curve, last, watch, f"{run['passes']:.2f}", f"`{r['name']}`"])
    header = ["eps", "seed", "PGD-10 by epoch, %", "last epoch: clean, PGD-10", "the watch saw", "passes", "record"]
    machine = "; ".join(sorted({f"{r['hardware']}, {r['date']}" for r in found}))
    n = found[0]["methods"][method]["test"]["n_examples"]
    images = found[0]["training_images"]
    where = (
        f"Where catastrophic overfitting would show: the small network on {images} CIFAR-10 images; the curve on 500 "
        f"validation images, the last epoch on {n} test images; {machine} (`examples/cifar10/collapse.py`):"
    )
    pictures = "\n".join(f"![robust accuracy by epoch at {r['eps']}]({RESULTS}/{r['name']}.svg)" for r in found)
    return f"{where}\n\n{table(header, rows)}\n\n{pictures}"


def overfitting(method: str) -> str:
    """Best and last weights of examples/cifar10/overfitting.py, where robust overfitting would show."""
    found = [r for r in records() if r["name"] == "overfitting" and method in r["methods"]]
    if not found:
        return ""
    (r,) = found
    rows = []
    for run in r["methods"][method]:
        best, last = (percent(run["test"][which]["pgd-10-1"]) for which in ("best", "last"))
        rows.append([str(run["seed"]), f"{run['best_epoch']} of {r['epochs']}", best, last, f"{100 * run['gap']:.1f}"])
    options = " ".join(f"{name}={value}" for name, value in r["options"][method].items())
    where = (
        f"Where robust overfitting would show: the small network on {r['training_images']} CIFAR-10 images at "
        f"{r['eps']}, in short runs with settings of their own ({options}; AdamW, no augmentation); PGD-10 on "
        f"{r['test_images']} test images; {r['hardware']}, {r['date']} (`examples/cifar10/overfitting.py`):"
    )
    header = ["seed", "best epoch", "best weights", "last weights", "gap, points"]
    return f"{where}\n\n{table(header, rows)}\n\n![robust accuracy by epoch]({RESULTS}/{r['name']}.svg)"


def distillation(name: str) -> str:
    """Students of distilled and of random images, and robust accuracy at equal time, of examples/cifar10/distill.py."""
    found = [r for r in records() if r["name"].startswith("distill-") and name == "rded"]
    return "\n\n".join(map(_distilled, found))


def _distilled(r: dict[str, Any]) -> str:
    def spread(runs: list[dict[str, Any]]) -> str:
        values = [100 * run["clean_accuracy"] for run in runs]
        middle, error = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{middle:.1f} ± {error:.1f} % ({len(values)} seeds)"

    small = [
        [ipc, way, spread(runs), f"{max(run['seconds'] for run in runs):.0f}"]
        for ipc, ways in r["students"].items()
        for way, runs in ways.items()
    ]
    machine = f"{r['hardware']}, {r['date']} (`examples/cifar10/distill.py`, `{r['name']}`)"
    timed = r["equal_time"]
    long = [
        [way, str(one["epochs"]), f"{one['seconds']:.0f}", percent(one["clean_accuracy"]), percent(one["pgd-10-1"])]
        for way, one in timed["ways"].items()
    ]
    return (
        f"The small network, {r['epochs']} epochs with the observer's labels where not said otherwise, best epoch on "
        f"the whole test split; the observer, the same network, has {percent(r['observer']['clean_accuracy'])}; "
        f"{machine}:\n\n"
        + table(["images per class", "trained on", "clean", "seconds to distill"], small)
        + f"\n\nAdversarial training for equal time (training seconds, checks not counted), three attack steps at "
        f"8/255, best epoch on {timed['test_images']} test images, seed {timed['seed']}; an observer and distilling "
        "come on top for the distilled images:\n\n"
        + table(["trained on, with", "epochs", "seconds", "clean", "PGD-10"], long)
        + (f"\n\n`{r['name']}`: {r['note']}." if r.get("note") else "")
        + f"\n\n![robust accuracy by training second]({RESULTS}/{r['name']}.svg)"
    )


def self_supervised(method: str) -> str:
    """The vote of each checkpoint of examples/cifar10/ssat.py, and all attacks before and after."""
    found = [r for r in records() if r["name"] == "ssat" and method == "ssat"]
    if not found:
        return ""
    (r,) = found
    radii = list(r["checkpoints"][0]["radii"])

    def rates(row: dict[str, Any], names: tuple[str, ...]) -> list[str]:
        return [f"{row['radii'][radius][name]['dsr']:.2f}" for radius in radii for name in names]

    along = ("pgd-knn", "worst")
    rows = [[one["checkpoint"], percent(one["knn"]["clean_accuracy"]), *rates(one, along)] for one in r["checkpoints"]]
    header = ["checkpoint", "clean, vote", *(f"DSR {radius}, {name}" for radius in radii for name in along)]
    names = ("pgd-knn", "pgd-knn-balanced", "transfer", "square", "worst")
    all_rows = [
        [one["checkpoint"], radius, percent(one["knn"]["clean_accuracy"])]
        + [percent(one["radii"][radius][name]["accuracy"]) for name in names]
        + [percent(one["surrogate"]["clean_accuracy"]), percent(one["radii"][radius]["autoattack"]["accuracy"])]
        for one in r["all_attacks"]
        for radius in radii
    ]
    all_header = ["checkpoint", "eps", "vote: clean", *names, "surrogate: clean", "AutoAttack"]
    first, hard = r["checkpoints"][0], r["all_attacks"][0]
    epochs = ", ".join(f"{count} of {phase}" for phase, count in r["epochs"].items())
    where = (
        f"The small network on {r['training_images']} CIFAR-10 images, epochs: {epochs}; the vote of {first['k']} of "
        f"{first['database']} neighbours on {first['n_examples']} test images; worst of pgd-knn, pgd-knn-balanced and "
        f"transfer; {r['hardware']}, seed {r['seed']}, {r['date']} (`{r['command']}`):"
    )
    queries = hard["attack"]["queries"]
    also = f"Accuracy under all attacks, on {hard['n_examples']} test images, Square with {queries} queries:"
    picture = f"![defence success rate over accuracy]({RESULTS}/{r['name']}.svg)"
    return "\n\n".join((where, table(header, rows), also, table(all_header, all_rows), picture))


def cost(name: str) -> str:
    """What a training step costs beside the floor of as many attack steps, alone or with a modifier."""
    told = [
        f"{seconds / ways['floor']:.2f} times the floor of {k} attack step{'s' * (k != '1')}{_rounds(r, k, way)} "
        f"({way.removeprefix('timm-robust ').replace('+', ' with ')}, `{r['name']}`)"
        for r in records()
        if r["name"].startswith("step-cost")
        for k, ways in r["k"].items()
        for way, seconds in ways.items()
        if way.startswith("timm-robust") and name in way.removeprefix("timm-robust ").split("+")
    ]
    notes = [f" `{r['name']}`: {r['note']}." for r in records() if r.get("note") and f"`{r['name']}`" in "".join(told)]
    return f"A training step costs {'; '.join(told)}.{''.join(notes)}" if told else ""


def _rounds(record: dict[str, Any], k: str, way: str) -> str:
    """The range of the ratios over the rounds, where a record has it."""
    if "ratios" not in record:
        return ""
    low, high = record["ratios"][k][way]
    return f", {low:.2f} to {high:.2f} in its {record['repeats']} rounds"


def methods() -> str:
    """All methods, with the numbers of the small CIFAR-10 setting where measured."""
    small = {r["method"]: r for r in records() if r["name"].startswith("cifar10-small-")}
    rows = []
    for name, provided in sorted(get_manager().defenses().items()):
        if provided.distribution != "timm-robust":
            continue
        r = small.get(name)
        folder = provided.spec.target.split(".")[1]
        numbers = (
            [percent(None)] * 3
            if r is None
            else [percent(r["clean_accuracy"]), attack(r, "pgd-10-1"), attack(r, "autoattack")]
        )
        rows.append([f"[`{name}`](plugins/{folder}/README.md)", provided.spec.summary, *numbers])
    return table(["method", "what it does", "clean", "PGD-10", "AutoAttack"], rows)


def full_size() -> str:
    """All full-size recipes: our numbers where there is a record, and what others published."""
    own = {FULL.sub("", r["name"]): r for r in records() if FULL.match(r["name"])}
    rows = []
    for entry in json.loads((ROOT / "examples/cifar10/published.json").read_text()):
        r = own.get(entry["recipe"])
        numbers = (
            ["-"] + [percent(None)] * 3
            if r is None
            else [r["model"], percent(r["clean_accuracy"]), attack(r, "pgd-50-10"), attack(r, "autoattack")]
        )
        rows.append([f"`{entry['recipe']}`", *numbers, entry["aim"], entry["published"]])
    return table(["recipe", "network", "clean", "PGD-50-10", "AutoAttack", "aim, %", "published, %: not ours"], rows)


def step_cost() -> str:
    """What a training step costs, as multiples of its floor, in each record of the benchmark."""
    rows, notes = [], []
    for record in records():
        if not record["name"].startswith("step-cost") or "--methods" in record["command"]:
            continue  # what a user named stands in the cards
        for k, ways in record["k"].items():
            for way, seconds in ways.items():
                between = " to ".join(f"{ratio:.2f}" for ratio in record.get("ratios", {}).get(k, {}).get(way, []))
                rows.append([f"`{record['name']}`", k, way, f"{seconds / ways['floor']:.2f}", between])
        notes.append(f"`{record['name']}`: {record['hardware']}, {record['date']}; {record.get('note') or 'no note'}.")
    notes += [
        f"`{r['name']}`: an epoch of fgsm-rs on {r['images']} CIFAR-10 images takes {r['ratio']:.2f} times as long as "
        f"a plain loop beside it; {r['hardware']}, {r['threads']} threads, {r['date']}."
        for r in records()
        if r["name"].startswith("epoch-beside")
    ]
    header = ["record", "attack steps", "way", "x floor", "in single rounds"]
    if not any(row[-1] for row in rows):  # records from before they were kept
        header, rows = header[:-1], [row[:-1] for row in rows]
    return table(header, rows) + "\n\n" + "\n".join(notes)


def allocator() -> str:
    """What it brings to keep freed memory, in each record of the benchmark."""
    rows, notes = [], []
    for record in (r for r in records() if r["name"].startswith("allocator-")):
        plain = {(row["method"], row["precision"]): row for row in record["rows"] if not row["kept"]}
        for row in record["rows"]:
            before = plain[row["method"], row["precision"]]
            ratios = (f"{row['seconds'] / before['seconds']:.2f}", f"{row['peak MiB'] / before['peak MiB']:.2f}")
            numbers = [f"{row[name]:.0f}" for name in ("seconds", "user", "system", "peak MiB")]
            rows.append([row["method"], row["precision"], "kept" if row["kept"] else "returned", *numbers, *ratios])
        note = f"; {record['note']}" if record.get("note") else ""
        notes.append(
            f"`{record['name']}`: medians of {record['turns']} turns, the small network; {record['hardware']}, "
            f"{record['date']}{note} (`{record['command']}`)."
        )
    if not rows:
        return "Not measured."
    header = ["method", "precision", "freed memory", "s / epoch", "user s", "system s", "peak MiB", "x time", "x peak"]
    return table(header, rows) + "\n\n" + "\n".join(notes)


def composition() -> str:
    """What each part of our own recipe adds, where it was tried."""
    found = [r for r in records() if r["name"] == "composition"]
    if not found:
        return "Not measured."
    r = found[0]
    rows = []
    for way, runs in r["ways"].items():
        clean, robust, seconds = (
            statistics.mean(one[name] for one in runs) for name in ("clean_accuracy", "pgd-10-1", "seconds_per_epoch")
        )
        rows.append(
            [way if way in ("trades", "all") else f"with {way}", percent(clean), percent(robust), f"{seconds:.0f}"]
        )
    seeds = ", ".join(str(one["seed"]) for one in next(iter(r["ways"].values())))
    images = f"{r['training_images']} training and {r['test_images']} test images"
    about = f"`{r['name']}`: {images}, {r['epochs']} epochs, seed {seeds}, {r['hardware']}, {r['date']}"
    note = f"; {r['note']}" if r.get("note") else ""
    return table(["trades", "clean", "PGD-10", "s / epoch"], rows) + f"\n\n{about}{note}."


def autoattack() -> str:
    """Wall time of AutoAttack's fast mode beside the reference, by attack."""
    rows, notes = [], []
    for r in records():
        if not r["name"].startswith("autoattack-"):
            continue
        hand, ours = ([way for way in r["seconds"] if way.startswith(mode)] for mode in ("reference", "fast"))
        for way in ours:
            for attack_name, seconds in r["seconds"][way].items():
                ratios = [f"{seconds / r['seconds'][other][attack_name]:.2f}" for other in hand]
                rows.append([f"`{r['name']}`", way, attack_name, f"{seconds:.0f} s", *ratios])
        told = []
        for way in ours:
            counts = [sum(a != b for a, b in zip(r["robust"][way], r["robust"][o], strict=True)) for o in hand]
            told.append(
                f"of the {r['n_examples']} verdicts of {way}, "
                + " and ".join(f"{count} differ from {other}" for count, other in zip(counts, hand, strict=True))
            )
        for adapter in (way for way in r["seconds"] if way.startswith("evaluate")):
            by_hand = f"reference{adapter.removeprefix('evaluate')}"
            ratio = r["seconds"][adapter]["all"] / r["seconds"][by_hand]["all"]
            told.append(f"{adapter} takes {ratio:.2f} x {by_hand}")
            if adapter in r.get("seconds_outside_the_implementation", {}):
                outside = r["seconds_outside_the_implementation"][adapter] / r["seconds"][adapter]["all"]
                told[-1] += f" ({percent(outside)} of it outside the implementation's attacks)"
        note = f"; {r['note']}" if r.get("note") else ""
        notes.append(f"`{r['name']}`: {'; '.join(told)}; {r['threads']} threads, {r['hardware']}, {r['date']}{note}.")
    if not rows:
        return "Not measured."
    return table(["record", "mode", "attack", "time", "x batch 32", "x batch 256"], rows) + "\n\n" + "\n".join(notes)


def agreement() -> str:
    """Robust accuracy by the fast mode and by the reference on the same images, seed by seed."""
    found = [r for r in records() if r["name"].startswith("agreement-")]
    rows, notes = [], []
    for r in found:
        for case in r["cases"]:
            for mode, shares in case["robust_accuracy"].items():
                ours = mode != "reference"
                apart = statistics.mean(shares) - statistics.mean(case["robust_accuracy"]["reference"])
                counts = " ".join(map(str, case["verdicts_differ"][mode]))
                rows.append(
                    [
                        f"{case['network']} ({case['method']}), {case['eps']}",
                        mode,
                        " ".join(f"{100 * share:.1f}" for share in shares),
                        f"{100 * apart:+.2f}" if ours else "",
                        counts if ours else f"{counts} between its own seeds",
                    ]
                )
        seeds = ", ".join(map(str, r["seeds"]))
        notes.append(
            f"`{r['name']}`: {r['n_examples']} test images of CIFAR-10, seeds {seeds}, {r['implementation']}, "
            f"{r['hardware']}, {r['date']}{'; ' + r['note'] if r.get('note') else ''}."
        )
    if not rows:
        return "Not measured."
    header = ["network", "mode", "robust accuracy by seed, %", "mean less the reference's, points"]
    header += [f"verdicts that differ, of {found[0]['n_examples']}"]
    return table(header, rows) + "\n\n" + "\n".join(notes)


def filled(text: str) -> str:
    """The text with its generated parts made anew."""

    def part(match: re.Match[str]) -> str:
        kind, name = match[1], match[2]
        makers = {
            "methods": methods,
            "full-size": full_size,
            "step-cost": step_cost,
            "allocator": allocator,
            "composition": composition,
            "autoattack": autoattack,
            "agreement": agreement,
        }
        body = makers[kind]() if kind in makers else options(name) if kind == "options" else evidence(name)
        return f"<!-- {kind}{' ' + name if name else ''} -->\n{body}\n<!-- end -->"

    return PART.sub(part, text)


def pages() -> list[Path]:
    examples = [ROOT / "examples" / folder / "README.md" for folder in ("benchmarks", "cifar10")]
    return [ROOT / "README.md", *examples, *sorted((ROOT / "plugins").glob("*/README.md"))]


def main() -> None:
    stale = []
    for page in pages():
        before = page.read_text()
        after = filled(before)
        if after != before:
            stale.append(page.relative_to(ROOT))
            if "--check" not in sys.argv:
                page.write_text(after)
    print("\n".join(map(str, stale)) or "all generated parts are current")
    if "--check" in sys.argv and stale:
        raise SystemExit("generated parts are stale: run python examples/results/tables.py")


if __name__ == "__main__":
    main()
