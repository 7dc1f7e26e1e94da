"""The norms of a model."""

import numpy as np

from hpcmoe.kernels.norm import rms_norm
from hpcmoe.spec import ModelSpec


def norm(model: ModelSpec, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x `[T, H]` as the model's blocks want it -> `[T, H]`"""
    return rms_norm(x, weight, model.norm_eps, model.norm_weight_first)
