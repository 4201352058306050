"""Options of ATAS."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class AtasOptions(Options):
    """Defaults are the authors': CIFAR's up to 64 pixels, ImageNet's above."""

    soft_norm: float | None = option(
        None,
        help="gradient norm of one sample's loss that halves the step: 1.28 up to 64 pixels, 12.8 above",
        low=1e-9,
        source="released code's c (0.01 and 0.1) times its batch of 128, which makes it free of the batch size",
    )
    numerator: float = option(
        16.0, help="step at gradient norm 0; it does not grow with eps", unit="1/255", low=0.0, source="released code"
    )
    min_step: float = option(4.0, help="smallest step", unit="1/255", low=0.0, source="released code")
    max_step: float | None = option(
        None, help="largest step: 14 up to 64 pixels, 8 above", unit="1/255", low=0.0, source="released code"
    )
    decay: float = option(
        0.5, help="of the moving average of squared gradient norms", low=0.0, high=1.0, source="released code"
    )
    warmup_epochs: int = option(
        5, help="epochs with a step of eps for all", unit="epochs", low=0, source="released code"
    )
    reset_epochs: int = option(
        10, help="perturbations are drawn anew that often", unit="epochs", low=1, source="released code"
    )
    stored_size: int | None = option(
        None,
        help="side of a stored perturbation: the padded image's up to 64 pixels, 32 above, enlarged on use",
        unit="pixels",
        low=1,
        source="released code",
    )
    carry: bool = option(
        True,
        help="store what the attack found; false starts from stored noise, as the released ImageNet code does",
        source="paper; the released ImageNet code stores nothing by mistake",
    )
    table_dtype: str = option(
        "float16",
        help="of the stored perturbations: float16 takes half the memory",
        choices=("float16", "float32"),
        source="ours; the released code has float32 on CIFAR and float16 on ImageNet",
    )
    table_place: str = option(
        "auto", help="where they live: auto, device or host memory", choices=("auto", "device", "host"), source="ours"
    )
    attack_bn: str = bn_option("eval", source="released code")
