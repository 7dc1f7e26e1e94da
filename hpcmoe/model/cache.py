"""What is kept of the tokens of the sequences that a rank works on."""

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


class LatentCache:
    """One vector, and one turned key behind it, for each token: `[L, slots, length, rank + rotary_dim]`."""

    def __init__(self, model: ModelSpec, slots: int, length: int, dtype: np.dtype) -> None:
        self.kept = np.empty((model.layers, slots, length, values(model)), dtype)

    def extend(self, layer: int, slot: int, cached: int, kept: np.ndarray) -> np.ndarray:
        """Puts kept `[n, rank + rotary_dim]` behind the `cached` tokens of a sequence; a view of all,
        `[cached + n, rank + rotary_dim]`."""
        end = cached + len(kept)
        self.kept[layer, slot, cached:end] = kept
        return self.kept[layer, slot, :end]


Cache = KvCache | LatentCache


def open_cache(model: ModelSpec, slots: int, length: int, dtype: np.dtype) -> Cache:
    """The cache that the model's attention needs."""
    return (LatentCache if model.attention.latent else KvCache)(model, slots, length, dtype)


def values(model: ModelSpec) -> int:
    """Values that are kept of a token in a layer."""
    a = model.attention
    return a.latent.rank + a.latent.rotary_dim if a.latent else 2 * a.kv_width


def size(model: ModelSpec, slots: int, length: int, itemsize: int) -> int:
    """Bytes of the cache."""
    return model.layers * slots * length * values(model) * itemsize
