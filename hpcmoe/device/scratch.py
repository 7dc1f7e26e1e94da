"""How much scratch memory the device code takes: read by it, and by the plan of a GPU's memory, which needs no CuPy."""

WORKSPACE = 1 << 25
"""Bytes of cuBLASLt's, as cuBLAS takes itself on Hopper."""
LOGITS = 1 << 28
"""Logits that a head holds at once."""
TILE = 32
"""Tokens of a block that puts rows in order, as in gate.cu."""
