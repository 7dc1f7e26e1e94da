"""Switches between nodes, as Slurm tells every task in its environment.

    SLURM_TOPOLOGY_ADDR           SLURM_TOPOLOGY_ADDR_PATTERN
    s0.s4.s8.tux1                 switch.switch.switch.node     topology/tree: from the top to the leaf
    .s[4-5].s8.tux1               switch.switch.switch.node     no switch, or several, on a level
    b8.tux1                       block.node                    topology/block
    t:1:0:2.tux1                  torus:x:y:z.node              topology/torus3d
    tux1.site                     node                          no topology, or none for this node

See srun(1), and `topology_p_get_node_addr` of each plugin. What has another form tells nothing, and is no error.
"""

import os
from collections.abc import Sequence

import numpy as np

ADDRESS, PATTERN = "SLURM_TOPOLOGY_ADDR", "SLURM_TOPOLOGY_ADDR_PATTERN"
LINKS = ("own rank", "same node", "same switch", "other switches")
"""What lies between two ranks."""

Above = tuple[str, ...]
"""The switches above a node, from the top to the leaf; () where they are not known."""


def told() -> tuple[str, str]:
    """Address and pattern of this process's node; "" where Slurm does not tell."""
    address, pattern = (os.environ.get(name, "").encode(errors="replace").decode() for name in (ADDRESS, PATTERN))
    return address, pattern


def above(address: str, pattern: str) -> Above:
    """What an address says of the switches above its node."""
    kinds = pattern.split(".")
    parts = address.split(".", len(kinds) - 1)  # names of nodes may have dots themselves
    if len(parts) < len(kinds) or kinds[-1] != "node" or not parts[-1]:
        return ()
    found = [part.split(":")[0] if ":" in kind else part for kind, part in zip(kinds[:-1], parts)]
    return tuple(found) if any(found) else ()


def leaves(paths: Sequence[Above], node: Sequence[int]) -> np.ndarray:
    """`[R]` int32: the leaf switch of each rank, numbered from 0 in the order of their first ranks.

    Ranks of a node have that of its first rank; nodes whose switches are not known have one together. node `[R]`.
    """
    first: dict[int, Above] = {}
    found = [first.setdefault(number, path) for number, path in zip(node, paths, strict=True)]
    order = list(dict.fromkeys(found))
    return np.array([order.index(path) for path in found], np.int32)


def links(node: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    """`[R, R]` int8: what lies between each two ranks, as an index of `LINKS`; node and leaf `[R]`."""
    own = np.eye(len(node), dtype=bool)
    same_node, same_leaf = (values[:, None] == values for values in (node, leaf))
    return np.select([own, same_node, same_leaf], [0, 1, 2], 3).astype(np.int8)
