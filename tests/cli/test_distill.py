"""`timm-robust distill`: exit status 2 with one sentence for a mistake."""

from __future__ import annotations

import sys

import pytest

from timm_robust.cli import main


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no observer: name a run's folder"),
        (
            ["--observer", "resnet19"],
            "observer 'resnet19' is neither a checkpoint nor a timm model: did you mean resnet1",
        ),
        (["--observer", "."], "holds no checkpoint"),
        (["--observer", "OBSERVER", "--ipc", "0"], "ipc is 0"),
        (
            ["--observer", "OBSERVER", "--ipc", "100", "-o", "factor=2"],
            "raise the option 'pool', or lower ipc or factor",
        ),
        (["--observer", "OBSERVER", "--ipc", "200"], "has 12"),
        (["--observer", "OBSERVER", "-o", "factor=9"], "have no room for that many"),
        (["--observer", "OBSERVER", "-o", "factr=2"], "did you mean factor"),
        (["--observer", "OBSERVER", "--method", "rdet"], "unknown distiller 'rdet': did you mean rded"),
        (["--observer", "OBSERVER", "--method", "random", "--ipc", "5000"], "lower ipc, which is 5000"),
        (["--observer", "OBSERVER", "--format", "pnk"], "did you mean png"),
        (["--observer", "OBSERVER", "--image-size", "16"], "was trained on 8 pixels, image_size is 16"),
        (["--observer", "OBSERVER", "--data", "digitz"], "did you mean digits"),
        (["--observer", "OBSERVER", "--precision", "half"], "unknown precision 'half'"),
        (["--resume", "--observer", "OBSERVER"], "resume needs the folder of the distillation"),
        (["--resume", "--output", "nothing"], "nothing to resume in nothing"),
        (["--resume", "--output", "OBSERVER"], "holds a run and no distillation"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(arguments, sentence, observer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["timm-robust", "distill", *arguments]
    monkeypatch.setattr(sys, "argv", [str(observer) if word == "OBSERVER" else word for word in command])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and sentence in told and "Traceback" not in told and told.count("\n") == 0, told
    assert not list(tmp_path.rglob("manifest.json"))
