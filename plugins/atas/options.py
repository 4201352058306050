"""Options of ATAS."""

from __future__ import annotations

from dataclasses import dataclass

from timm_robust.plugin import Options, bn_option, option


@dataclass(frozen=True, kw_only=True)
class AtasOptions(Options):
    """Defaults are the authors': those for CIFAR up to 64 pixels, those for ImageNet above."""

    soft_norm: float | None = option(
        None,
        help="per-sample gradient norm at which the step size is halved; default 1.28 up to 64 pixels, 12.8 above",
        low=1e-9,
        source="released code's c (0.01 and 0.1) times its batch of 128, which makes it free of the batch size",
    )
    numerator: float = option(
        16.0,
        help="step size at gradient norm 0; does not scale with eps",
        unit="1/255",
        low=0.0,
        source="released code",
    )
    min_step: float = option(4.0, help="minimum step size", unit="1/255", low=0.0, source="released code")
    max_step: float | None = option(
        None,
        help="maximum step size; default 14 up to 64 pixels, 8 above",
        unit="1/255",
        low=0.0,
        source="released code",
    )
    decay: float = option(
        0.5, help="decay of the moving average of squared gradient norms", low=0.0, high=1.0, source="released code"
    )
    warmup_epochs: int = option(
        5, help="epochs in which every sample's step size is eps", unit="epochs", low=0, source="released code"
    )
    reset_epochs: int = option(
        10, help="re-initialise perturbations every N epochs", unit="epochs", low=1, source="released code"
    )
    stored_size: int | None = option(
        None,
        help="side of a stored perturbation, resized when used; default: the padded image's up to 64 pixels, 32 above",
        unit="pixels",
        low=1,
        source="released code",
    )
    carry: bool = option(
        True,
        help="store the attack's result; false: always start from the stored noise, as the released ImageNet code does",
        source="paper; the released ImageNet code stores nothing by mistake",
    )
    table_dtype: str = option(
        "float16",
        help="data type of the stored perturbations; float16 takes half the memory",
        choices=("float16", "float32"),
        source="ours; the released code has float32 on CIFAR and float16 on ImageNet",
    )
    table_place: str = option(
        "auto", help="memory that holds the table", choices=("auto", "device", "host"), source="ours"
    )
    attack_bn: str = bn_option("eval", source="released code")
