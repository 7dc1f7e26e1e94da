"""The tensors of others that make up one of ours, one below the other: the rows of each, and its values."""

from pathlib import Path

import numpy as np

from hpcmoe.errors import InputError
from hpcmoe.spec import ModelSpec, Tensor

LARGEST = np.float32(3.3895314e38)
"""Of bfloat16; what is beyond it would become infinite."""


def checked(values: np.ndarray, name: str, path: Path) -> np.ndarray:
    """The values of the tensor `name` in a checkpoint, as float32. Raises `InputError` where one is no number."""
    wide = values.astype(np.float32, copy=False)
    if wide.size and not (wide.max() <= LARGEST and wide.min() >= -LARGEST):  # a NaN is neither
        raise InputError(f"{path}: {name} has values that are NaN, infinite, or too large for bfloat16")
    return wide


def part_shapes(model: ModelSpec, tensor: Tensor, count: int) -> list[tuple[int, ...]]:
    """Shapes of the `count` parts of `tensor`: query, key and value rows, or gate and up rows."""
    if count == 1:
        return [tensor.shape]
    if tensor.kind.startswith("attention/qkv"):
        a = model.attention
        rows = [a.query_width, a.kv_width, a.kv_width]
    else:
        rows = [tensor.shape[0] // count] * count
    return [(n, *tensor.shape[1:]) for n in rows]
