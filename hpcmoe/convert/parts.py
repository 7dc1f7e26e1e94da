"""The tensors of others that make up one of ours, one below the other: how many rows each of them has."""

from hpcmoe.spec import ModelSpec, Tensor


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
