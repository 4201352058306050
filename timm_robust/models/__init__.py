"""timm model in, classifier of pixels out; what a plugin author imports."""

from timm_robust.models.factory import build_like, build_model, count_parameters, rebuild
from timm_robust.models.pixel_model import ModelConfig, PixelModel

ModelRecord = ModelConfig
"""Name in the model files that `submit` wrote before; they are published and keep working."""

__all__ = ["ModelConfig", "ModelRecord", "PixelModel", "build_like", "build_model", "count_parameters", "rebuild"]
