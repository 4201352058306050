"""timm model in, classifier of pixels out; what a plugin author imports."""

from timm_robust.models.factory import build_model, count_parameters, rebuild, sibling
from timm_robust.models.pixel_model import ModelRecord, PixelModel

__all__ = ["ModelRecord", "PixelModel", "build_model", "count_parameters", "rebuild", "sibling"]
