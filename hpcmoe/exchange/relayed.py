"""What rows travel by, that go in two hops."""

from dataclasses import dataclass

from hpcmoe.exchange.grid import Grid
from hpcmoe.exchange.presum import Presum
from hpcmoe.exchange.route_far import far_width


@dataclass(frozen=True)
class Relayed:
    """What rows travel by."""

    grid: Grid
    top_k: int
    """answers of a token; where experts are cut into t shards, K * t"""
    presum: Presum | None = None
    """how relays sum answers, where they do"""

    @property
    def width(self) -> int:
        """int16 values behind each row."""
        return far_width(self.top_k, self.presum is not None)
