"""Weights on the GPU."""

import cupy
import numpy as np

from hpcmoe import array
from hpcmoe.spec import Tensor

ADDED_BY_GEMM = "attention/qkv_bias"


def keep(tensor: Tensor, values: np.ndarray) -> cupy.ndarray:
    """Matrices, and the bias that a product adds, as bfloat16 (uint16); other vectors as they are, float32."""
    wide = values.ndim == 1 and tensor.kind != ADDED_BY_GEMM
    return cupy.asarray(values if wide else array.narrow(values))
