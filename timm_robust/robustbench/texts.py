"""The words of a submission: the issue, the log, and the folder's own page. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm_robust.robustbench.record import Board, timm_name_for

TODO = "TODO"

ISSUE = """\
{draft}Title: [New Model] {model_id}
Label: new-model

# Paper Information

- **Paper Title**: {name}
- **Paper URL**: {link}
- **Paper authors**: {authors}

# Leaderboard Claim(s)

## Model 1

- **Architecture**: {architecture}
- **Dataset**: {dataset}
- **Threat Model**: {threat}
- **eps**: {eps}
- **Clean accuracy**: {clean_acc}%
- **Robust accuracy**: {autoattack_acc}%
- **Additional data**: {additional}
- **Evaluation method**: {method}
- **Checkpoint and code**: {code}

The evaluation log is attached (log.txt), and so is every image's verdict (evaluation.json).{flags}

# Model Zoo:

- [ ] I want to add my models to the Model Zoo (check if true)
- [ ] I use an architecture that is **not** included among those
  [here](https://github.com/RobustBench/robustbench/tree/master/robustbench/model_zoo/architectures) (check if true).
- [ ] I agree to release my model(s) under MIT license (check if true) **OR**
- [ ] I want my models to be released under a custom license, located here: {todo} (custom license URL here)
"""

README = """\
# {model_id} for RobustBench
{draft}
{board}: clean {clean_acc} %, AutoAttack {autoattack_acc} %, on {n} images.

| file | what it is for |
| --- | --- |
| `ISSUE.md` | the issue "New Model(s)" for github.com/RobustBench/robustbench; its first lines are title and label |
| `model_info/{board.dataset}/{board.threat}/{model_id}.json` | the board's record, at its path in RobustBench |
| `{model_id}.pt` | the weights, a plain state dict: `torch.load("{model_id}.pt", weights_only=True)` |
| `{module}.py` | makes the network and registers it with timm as `{timm_name}` |
| `evaluation.json` | what was measured: settings, versions, every image's verdict |
| `log.txt` | the same in AutoAttack's words |

## Load it

    import {module}  # beside {model_id}.pt
    import robustbench

    model = robustbench.utils.load_model("{model_id}", dataset="{board.dataset}", threat_model="{board.threat}")

{needs}. `timm.create_model("{timm_name}", pretrained=True)` gives the same network.
Where the released RobustBench cannot be imported, `with timm_robust.robustbench.released() as robustbench:` imports it.

## Measure it again

    timm-robust evaluate {checkpoint} --data {data} --norm {board.threat} --eps {board.eps_text} --attack autoattack \\
        --examples {n} --batch-size {batch_size} --seed {seed} --json evaluation.json

{implementation}; {versions}; {hardware}. AutoAttack's verdicts depend on seed and batch size.
"""


def issue_text(
    record: Mapping[str, Any], board: Board, model_id: str, evaluation: Mapping[str, Any], code: str | None, draft: bool
) -> str:
    """RobustBench's issue template "New Model(s)" with the record's values."""
    entry = evaluation["attacks"]["autoattack"]
    method = (
        f"AutoAttack standard ({entry['implementation']}), first {entry['n_examples']} test images, float32, "
        f"batch size {entry.get('batch_size', TODO)}, seed {evaluation.get('seed', TODO)}"
    )
    flags = "".join(f" AutoAttack warned: {flag}." for flag in entry.get("flags", []))
    return ISSUE.format(
        draft="DRAFT, NOT TO BE SUBMITTED\n\n" if draft else "",
        model_id=model_id,
        threat=board.threat,
        method=method,
        additional="true" if record["additional_data"] else "false",
        code=code or f"{TODO} (URL of the checkpoint and of the code)",
        flags=flags,
        todo=TODO,
        **{key: value for key, value in record.items() if key not in ("additional_data", "footnote")},
    )


def log_text(evaluation: Mapping[str, Any]) -> str:
    """The lines that AutoAttack logs for a whole data set; those of each batch are not in the record."""
    entry = evaluation["attacks"]["autoattack"]
    after, seconds = entry.get("after", {}), entry.get("seconds_by_attack", {})
    lines = [f"using standard version including {', '.join(after)}."]
    if entry["n_examples"] == evaluation["n_examples"]:
        lines.append(f"initial accuracy: {evaluation['clean_accuracy']:.2%}")
    total = 0.0
    for attack, share in after.items():
        total += seconds.get(attack, 0.0)
        time = f" (total time {total:.1f} s)" if seconds else ""
        lines.append(f"robust accuracy after {attack.upper()}: {share:.2%}{time}")
    lines += [f"Warning: {flag}" for flag in entry.get("flags", [])]
    lines.append(f"robust accuracy: {entry['robust_accuracy']:.2%}")
    return "\n".join(lines) + "\n"


def readme_text(
    board: Board,
    model_id: str,
    evaluation: Mapping[str, Any],
    *,
    module: str,
    todo: Sequence[str],
    notes: Sequence[str],
    draft: bool,
    plain: bool,
) -> str:
    """The folder's page: what lies there, how to load it, how to measure it again, what is left to do."""
    entry = evaluation["attacks"]["autoattack"]
    text = README.format(
        board=board,
        model_id=model_id,
        module=module,
        draft=f"\n**Draft**: {entry['n_examples']} of {board.n_examples} images, not to be submitted.\n"
        if draft
        else "",
        clean_acc=f"{evaluation['clean_accuracy'] * 100:.2f}",
        autoattack_acc=f"{entry['robust_accuracy'] * 100:.2f}",
        n=entry["n_examples"],
        timm_name=timm_name_for(model_id, board.dataset, board.threat),
        needs="It needs torch and timm alone" if plain else "It needs torch, timm and timm-robust",
        checkpoint="CHECKPOINT",
        data="DATA",
        batch_size=entry.get("batch_size", 250),
        seed=evaluation.get("seed", 0),
        implementation=entry["implementation"],
        versions=", ".join(f"{name} {value}" for name, value in evaluation.get("versions", {}).items()),
        hardware=evaluation.get("hardware", "hardware not recorded"),
    )
    for title, items in (("Still to fill in", todo), ("To know", notes)):
        if items:
            text += f"\n## {title}\n\n" + "".join(f"- {item}\n" for item in items)
    return text
