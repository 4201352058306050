"""The picture of accuracy over the radius."""

from __future__ import annotations

import pytest

from tests.support import labelled, network
from timm_robust.evaluation.curve import accuracy_curve
from timm_robust.evaluation.inputs import EvalInputs
from timm_robust.report.radii import draw_radii
from timm_robust.threat import Threat

LINF, L2, L1 = Threat("Linf", 4 / 255, "4/255"), Threat("L2", 0.3, "0.3"), Threat("L1", 2.0, "2")


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_picture(tmp_path, ending):
    model, other = network(), network(seed=1)
    images, targets = labelled(model, 30)
    curves = {
        name: accuracy_curve(EvalInputs(one, images, targets, LINF), ["0", "4/255", "8/255"], "fgsm")
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
