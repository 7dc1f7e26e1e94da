"""How much scratch memory the device code takes: read by it, and by the plan of a GPU's memory, which needs no CuPy."""

WORKSPACE = 1 << 25
"""Bytes of cuBLASLt's, as cuBLAS takes itself on Hopper."""
LOGITS = 1 << 28
"""Logits that a head holds at once."""
TILE = 32
"""Tokens of a block that puts rows in order, as in gate.cu."""
RECURRING = 256
"""Tokens of a micro-batch up to which its work is captured, where each is a sequence's next one: as many come again."""
BLOCK = 128
"""Tokens of a block, to cuDNN."""
CHUNK = 256
"""Keys of a block of `attention.decode`, as in attention.cu."""
PARTS = 1 << 24
"""float32 values that the parts of its sums may take, where one token does not need more."""


def whole_blocks(length: int) -> int:
    """Positions that a cache for sequences of `length` tokens has: cuDNN reads whole blocks."""
    return -(-length // BLOCK) * BLOCK


def parts(heads: int, head_dim: int, slots: int, length: int) -> tuple[int, int, int, int]:
    """The parts of sums that `attention.decode` keeps, `[tokens, heads, chunks of keys, head_dim + 2]` float32."""
    chunks = -(-whole_blocks(length) // CHUNK)
    return max(1, min(slots, PARTS // (heads * chunks * (head_dim + 2)))), heads, chunks, head_dim + 2
