"""Where the search for groups begins: slots to nodes, by what they share with each other."""

import numpy as np

from hpcmoe.placement.touch import Tokens


def grown(tokens: Tokens, sizes: np.ndarray, lean: float) -> np.ndarray:
    """`[S]` int64, one node after another: the busiest slot that is left, then again and again the one with the most
    tokens among those that touch the node already; sizes `[N]`: slots of each node, S in all.

    `lean`: how much it counts against a slot that it is busy; those tokens are divided by that power of all
    its tokens.
    """
    S, slot = tokens.slots, tokens.slot
    n, K = slot.shape
    order = np.argsort(slot.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(slot.ravel(), minlength=S))
    of = np.split(order // K, ends[:-1])  # the tokens of each slot
    busy = np.diff(ends, prepend=0).astype(np.float64)
    node, left, divide = np.full(S, -1), np.ones(S, bool), np.maximum(busy, 1) ** lean
    for number, size in enumerate(sizes.tolist()):
        touches, shared = np.zeros(n, bool), np.zeros(S)
        for place in range(size):
            worth = shared / divide if place else busy
            chosen = int(np.where(left, worth, -1).argmax())
            node[chosen], left[chosen] = number, False
            new = of[chosen][~touches[of[chosen]]]
            touches[new] = True
            shared += np.bincount(slot[new].ravel(), minlength=S)
    return node


def spectral(tokens: Tokens, sizes: np.ndarray) -> np.ndarray:
    """`[S]` int64. Slots are points, near each other where they have tokens in common (the leading eigenvectors of the
    normalised table of pairs); one node after another takes the densest heap that is left."""
    S = tokens.slots
    both = np.bincount(tokens.pair, minlength=S * S).reshape(S, S).astype(np.float64)
    np.fill_diagonal(both, 0)
    scale = 1 / np.sqrt(np.maximum(both.sum(axis=1), 1))
    _, vectors = np.linalg.eigh(both * scale[:, None] * scale)
    point = vectors[:, -len(sizes):]
    point = point / np.maximum(np.linalg.norm(point, axis=1, keepdims=True), 1e-12)
    alike, node, left = point @ point.T, np.full(S, -1), np.arange(S)
    for number, size in enumerate(sizes.tolist()):
        near = alike[np.ix_(left, left)]
        dense = np.sort(near, axis=1)[:, len(left) - size:].sum(axis=1)
        heap = left[np.argsort(-near[dense.argmax()], kind="stable")[:size]] if size else left[:0]
        node[heap] = number
        left = np.setdiff1d(left, heap)
    return node
