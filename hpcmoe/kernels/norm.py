"""RMS norm (Zhang and Sennrich, "Root mean square layer normalization", 2019)."""

import numpy as np


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, weight_first: bool = False) -> np.ndarray:
    """x `[..., H]` over its root mean square, times weight `[H]` float32 -> the same shape and dtype.

    Rounded before the weight and behind it, `weight_first` behind it only.
    """
    wide = x.astype(np.float32, copy=False)
    scale = 1 / np.sqrt(np.mean(np.square(wide), axis=-1, keepdims=True) + np.float32(eps))
    if weight_first:
        return (weight * (wide * scale)).astype(x.dtype, copy=False)
    normed = (wide * scale).astype(x.dtype, copy=False)
    return (weight * normed.astype(np.float32, copy=False)).astype(x.dtype, copy=False)
