"""The keys and values of the sequences that a rank works on."""

import numpy as np

from hpcmoe.spec import ModelSpec


class KvCache:
    """Keys and values of `slots` sequences of at most `length` tokens, in the compute dtype.

    One allocation each, `[L, slots, kv_heads, length, head_dim]`; pages that no sequence has
    reached yet take no memory on a CPU.
    """

    def __init__(self, model: ModelSpec, slots: int, length: int, dtype: np.dtype) -> None:
        shape = (model.layers, slots, model.attention.kv_heads, length, model.attention.head_dim)
        self.k, self.v = np.empty(shape, dtype), np.empty(shape, dtype)

    def extend(self, layer: int, slot: int, cached: int, k: np.ndarray,
               v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Puts k and v `[n, kv_heads, head_dim]` behind the `cached` tokens of a sequence.

        Returns its keys and values with them, views `[kv_heads, cached + n, head_dim]`.
        """
        end = cached + len(k)
        keys, values = self.k[layer, slot, :, :end], self.v[layer, slot, :, :end]
        keys[:, cached:] = k.transpose(1, 0, 2)
        values[:, cached:] = v.transpose(1, 0, 2)
        return keys, values


def size(model: ModelSpec, slots: int, length: int, itemsize: int) -> int:
    """Bytes of a `KvCache`."""
    return 2 * model.layers * slots * model.attention.kv_width * length * itemsize
