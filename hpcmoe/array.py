"""Number formats: bfloat16 in NumPy, in files and in messages.

NumPy has no bfloat16 of its own (`ml_dtypes` adds it), HDF5 and the MPI wheels have none either: files
and messages carry its bits as uint16. Weights on a CPU are float32 arrays whatever the compute
dtype, so that BLAS takes them as they are.
"""

import ml_dtypes
import numpy as np

FLOAT32 = np.dtype(np.float32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16}


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits, uint16 of any shape -> float32 of the same values."""
    out = np.empty(bits.shape, np.float32)
    wide = out.view(np.uint32)
    wide[...] = bits
    wide <<= 16
    return out


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits as uint16, rounded to nearest even."""
    return values.astype(BFLOAT16).view(np.uint16)
