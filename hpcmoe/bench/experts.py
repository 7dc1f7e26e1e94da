"""`bench experts`: the mixture-of-experts block on one process, gate to answer, a peer in the same run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hpcmoe.array import FLOAT32
from hpcmoe.exchange.route import plan_receive, plan_send, trailer_width
from hpcmoe.files.drawn import Drawn
from hpcmoe.kernels.combine import combine
from hpcmoe.kernels.pack import pack, trailer, unpack
from hpcmoe.model import weights
from hpcmoe.model.expert import experts
from hpcmoe.model.gate import gate
from hpcmoe.model.weights import Layer
from hpcmoe.placement.plan import linear
from hpcmoe.spec import Attention, ModelSpec, Moe

Block = Callable[[np.ndarray], np.ndarray]
"""`[T, H]` float32 -> `[T, H]` float32"""

ROUNDS = 15
"""Calls of each block per figure; they take turns, so that a busy machine slows all alike."""


@dataclass(frozen=True)
class Figure:
    """The median time of one block at one size."""

    name: str
    tokens: int
    threads: int
    seconds: float
    apart: float
    """largest difference of its answer from ours"""


def measure(moe: Moe, hidden: int, tokens: Sequence[int], threads: Sequence[int], peer: str | None) -> list[Figure]:
    """Times ours, and `peer` ("transformers", to be installed) interleaved with it."""
    from threadpoolctl import threadpool_limits
    model = ModelSpec("bench", 1, hidden, 2, 2, Attention(1, 1, 2), None, moe)
    layer = weights.load(Drawn(model, 0), lambda n: list(range(moe.experts)), FLOAT32).layers[0]
    blocks = {"hpcmoe": ours(moe, layer)}
    if peer:
        blocks[peer] = transformers(moe, hidden, layer)
    figures = []
    for count in threads:
        with threadpool_limits(count):
            if peer:
                import torch
                torch.set_num_threads(count)
            for T in tokens:
                x = np.random.default_rng(T).standard_normal((T, hidden), np.float32)
                figures += _figures(blocks, x, count)
    return figures


def _figures(blocks: dict[str, Block], x: np.ndarray, threads: int) -> list[Figure]:
    answers = {name: block(x) for name, block in blocks.items()}  # the first call of each warms up
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    for _ in range(ROUNDS):
        for name, block in blocks.items():
            begin = time.perf_counter()
            block(x)
            seconds[name].append(time.perf_counter() - begin)
    first = next(iter(answers.values()))
    return [Figure(name, len(x), threads, float(np.median(seconds[name])), float(np.abs(answers[name] - first).max()))
            for name in blocks]


def ours(moe: Moe, layer: Layer) -> Block:
    """The way of rows on a rank that holds all experts: everything but MPI."""
    placement = linear(moe.experts, 1)
    width = trailer_width(placement.most, moe.top_k)
    assert layer.gate is not None

    def block(x: np.ndarray) -> np.ndarray:
        assert layer.gate is not None
        hidden = x.shape[1]
        route = gate(moe, layer.gate, x)
        plan = plan_send(placement.slot[route.expert], placement, width)
        message = np.empty((len(plan.token), 2 * hidden + width), np.uint16)
        pack(x, plan.token, plan.trailer, message)
        received = plan_receive(plan.counts, trailer(message, hidden, FLOAT32, width), moe.experts)
        answers = np.empty((len(received.row), hidden), np.float32)
        experts(layer.experts, unpack(message, hidden, FLOAT32), received, answers)
        return combine(answers, plan.home, route.weight)
    return block


def transformers(moe: Moe, hidden: int, layer: Layer) -> Block:
    """The same weights in transformers' Mixtral block with its grouped_mm experts, float32."""
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    config = MixtralConfig(hidden_size=hidden, intermediate_size=moe.hidden, num_local_experts=moe.experts,
                           num_experts_per_tok=moe.top_k)
    config._experts_implementation = "grouped_mm"
    peer = MixtralSparseMoeBlock(config).eval()
    assert layer.gate is not None
    with torch.no_grad():
        peer.gate.weight.copy_(torch.from_numpy(layer.gate.weight))
        for e, expert in enumerate(layer.experts):
            peer.experts.gate_up_proj[e].copy_(torch.from_numpy(expert.gate_up))
            peer.experts.down_proj[e].copy_(torch.from_numpy(expert.down))

    def block(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            answer = peer(torch.from_numpy(x)[None])
        return (answer[0] if isinstance(answer, tuple) else answer).reshape(x.shape).numpy()
    return block
