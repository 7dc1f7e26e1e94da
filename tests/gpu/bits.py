"""bfloat16 between NumPy, where it is a type, and the GPU, where it is its bits."""

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)


def some(rng, *shape):
    return rng.standard_normal(shape).astype(BF16)


def there(x):
    """On the device; bfloat16 as its bits."""
    import cupy
    return cupy.asarray(x.view(np.uint16) if x.dtype == BF16 else x)


def here(x):
    """Back, uint16 as bfloat16."""
    out = x.get()
    return out.view(BF16) if out.dtype == np.uint16 else out


def close(got, want):
    """bfloat16 that differ by two last bits at most, for two roundings may differ, and seldom at all."""
    got, want = got.astype(np.float32), want.astype(np.float32)
    assert got.shape == want.shape and np.all(np.abs(got - want) <= 2.0**-6 * np.abs(want)), np.abs(got - want).max()
    assert np.mean(got != want) < 0.02
