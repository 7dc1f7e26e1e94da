"""How much scratch memory the device code takes: read by it, and by the plan of a GPU's memory, which needs no CuPy."""

WORKSPACE = 1 << 25
"""Bytes of cuBLASLt's, as cuBLAS takes itself on Hopper."""
LOGITS = 1 << 28
"""Logits that a head holds at once."""
TILE = 32
"""Tokens of a block that puts rows in order, as in gate.cu."""
RECURRING = 256
"""Tokens of a micro-batch up to which its work is captured, where each is a sequence's next one: as many come again."""
FEW = 128
"""Rows per expert, on the mean, up to which one launch for all beats a tuned one for each."""
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


ABSORBED = 512, 64
"""The vector and the turned key that absorbed.cu is made for, in values: DeepSeek's, and of all that took it over."""
WORKERS = 160
"""Blocks of absorbed.cu that work at once, at most: more than any Hopper has multiprocessors."""
TOGETHER = 64
"""Heads of a block of absorbed.cu."""
PIECE = 1 << 24
"""Values of absorbed queries that are there at once, where one token does not need more."""
PLAIN = 1 << 27
"""Values of plain keys and values of a sequence that are there at once, where one head does not need more."""


def pieces(heads: int, rank: int) -> int:
    """Tokens whose absorbed queries are there at once."""
    return max(1, PIECE // (heads * rank))


def at_once(heads: int, width: int, length: int) -> int:
    """Heads whose keys and values, `width` values together, are there at once for all positions; divides heads."""
    most = max(1, PLAIN // (whole_blocks(length) * width))
    return max(h for h in range(1, heads + 1) if heads % h == 0 and h <= most)
