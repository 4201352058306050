"""`timm-robust compare`: a failed run, an interrupt, a resume, and mistakes."""

from __future__ import annotations

import json
import sys

from timm_robust_plugins.n_fgsm.n_fgsm import NFGSMTraining

from timm_robust.cli import main


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["timm-robust", "compare", *arguments])
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    fast = ["--model-kwargs", "layers=[1,1,1,1]", "channels=[8,8,16,16]", "--epochs", "1", "--test-attack", "clean"]
    started = ["--methods", "fgsm,n-fgsm", "--seeds", "5", *fast, "-o", "n-fgsm.noise_ratio=1", "--output", "out"]
    with monkeypatch.context() as patch:
        patch.setattr(NFGSMTraining, "loss", lambda *_: 1 / 0)
        status, out, err = call(*started)
    assert status == 1 and "run 2 of 2: n-fgsm, seed 5" in err and "1 of 2 runs failed" in err
    assert "fgsm" in out and "ZeroDivisionError" in out and "Traceback" not in err

    with monkeypatch.context() as patch:
        patch.setattr(NFGSMTraining, "on_epoch_start", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        status, out, err = call("--resume", "--output", "out")
    assert status == 130 and "continue with: timm-robust compare --resume --output out" in err
    assert "run 1 of 2: fgsm, seed 5: finished before" in err

    status, out, err = call("--resume", "--output", "out")
    assert status == 0 and "timm-robust evaluate out/fgsm-seed5" in out and "failed" not in out
    assert json.loads((tmp_path / "out/n-fgsm-seed5/manifest.json").read_text())["method_args"]["noise_ratio"] == 1.0
    for wrong in (["-o", "steps=3"], ["--seeds", "0,a"], ["--methods", "fgsmm"], []):
        status, out, err = call(*["--methods", "fgsm", *wrong, "--output", "out"])
        assert status == 2 and len(err.strip().splitlines()) == 1, err
    status, out, _ = call("--help")
    assert status == 0 and "Example: timm-robust compare" in " ".join(out.split())
