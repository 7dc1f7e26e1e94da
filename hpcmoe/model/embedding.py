"""The first thing that a token meets."""

import numpy as np


def embed(weight: np.ndarray, token: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rows of weight `[V, H]` for tokens `[T]` -> `[T, H]` of `dtype`."""
    return weight[token].astype(dtype, copy=False)
