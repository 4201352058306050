"""Threat model: norm and radius, in units of the [0, 1] pixel range.

Torch-free, so that the command line can check `--eps` before anything heavy is loaded.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from timm_robust.errors import UserError, unknown

NORMS = ("Linf", "L2")
"""Norms of training."""

EVALUATION_NORMS = (*NORMS, "L1")
"""Norms of evaluation."""

SMALL_IMAGE = 64
"""Largest side, in pixels, of small images: defaults and the stem follow the CIFAR family, and ImageNet above."""

DEFAULT_EPS = {"Linf": ("8/255", "4/255"), "L2": ("0.5", "3.0"), "L1": ("12", "60")}
"""Default radii for images of up to 64 pixels, and above."""


@dataclass(frozen=True)
class Threat:
    """A norm ball of radius `eps` around each image, intersected with the pixel range [0, 1].

    Attributes:
        norm: "Linf" or "L2"; "L1" in evaluation.
        eps: radius in units of the [0, 1] pixel range (8/255 = 0.0314).
        eps_text: radius as the user wrote it ("8/255"), for records.
    """

    norm: str
    eps: float
    eps_text: str

    def __str__(self) -> str:
        return f"{self.norm} {self.eps_text}"

    def to_dict(self) -> dict[str, str | float]:
        """Plain values for records and checkpoints."""
        return {"norm": self.norm, "eps": self.eps, "eps_text": self.eps_text}


def parse_eps(value: str | float | Fraction, norm: str = "Linf") -> tuple[float, str]:
    """Radius from "8/255", a Fraction or a float.

    Returns:
        radius in units of the [0, 1] pixel range, and its text for records.

    Raises:
        UserError: not a number, negative, or an Linf radius above 1 (probably meant in pixel values).
    """
    text = str(value).strip()
    if re.fullmatch(r"[0-9.eE+-]+\s*/\s*[0-9.eE+-]+", text):
        top, bottom = (part.strip() for part in text.split("/"))
        try:
            eps, text = float(top) / float(bottom), f"{top}/{bottom}"
        except (ValueError, ZeroDivisionError):
            raise UserError(f"eps {value!r} is not a fraction: expected something like 8/255") from None
    else:
        try:
            eps = float(text)
        except ValueError:
            raise UserError(f"eps {value!r} is not a number: expected a fraction like 8/255 or a float") from None
        text = _as_255ths(eps) if norm == "Linf" and math.isfinite(eps) else text
    if not math.isfinite(eps) or eps < 0:
        raise UserError(f"eps {value!r} is out of range: expected a radius of at least 0")
    if norm == "Linf" and eps > 1:
        hint = f"{text}/255" if "/" not in text and eps <= 255 else "8/255"
        raise UserError(
            f"eps {value!r} is larger than the whole pixel range [0, 1]: "
            f"radii are fractions of it, did you mean {hint}?"
        )
    return eps, text


def _as_255ths(eps: float) -> str:
    """`8/255` for 0.03137...; the plain number if it is no multiple of 1/255."""
    steps = round(eps * 255)
    return f"{steps}/255" if steps > 0 and abs(eps * 255 - steps) < 1e-6 else f"{eps:g}"


def make_threat(
    norm: str = "Linf",
    eps: str | float | Fraction | None = None,
    *,
    image_size: int,
    norms: tuple[str, ...] = NORMS,
) -> Threat:
    """The threat model for images of `image_size` pixels; `eps` defaults to the radius of the usual benchmarks.

    Defaults: Linf 8/255 up to 64 pixels and 4/255 above; L2 0.5 up to 64 pixels and 3.0 above
    (the radii of RobustBench's boards and of the published ImageNet models); L1 12 up to 64 pixels and 60 above
    (Croce and Hein, Mind the box, ICML 2021, arXiv:2103.01208; the 60 is remembered, not looked up).

    Args:
        norm: one of `norms`, in capitals or not.
        eps: radius as `parse_eps` takes it.
        image_size: side in pixels, for the default radius.
        norms: accepted norms; `EVALUATION_NORMS` where nothing is trained.

    Raises:
        UserError: unknown norm, or a radius that `parse_eps` refuses.
    """
    by_lower = {name.lower(): name for name in norms}
    if norm.lower() not in by_lower:
        raise unknown("norm", norm, norms)
    norm = by_lower[norm.lower()]
    if eps is None:
        eps = DEFAULT_EPS[norm][image_size > SMALL_IMAGE]
    radius, text = parse_eps(eps, norm)
    return Threat(norm, radius, text)
