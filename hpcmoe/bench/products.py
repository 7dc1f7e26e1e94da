"""How long products of few and of many rows take, with matrices that come from memory as weights do."""

import time
from collections.abc import Callable, Sequence
from math import isqrt

import numpy as np

from hpcmoe import array
from hpcmoe.exchange.interface import until
from hpcmoe.launch import World
from hpcmoe.predict.machine import Products

ROWS = {"host": (1, 2, 3, 4, 6, 8, 9, 12, 16, 32, 64, 128, 256, 512),
        "device": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)}
SIDES = {"host": (256, 512, 1024, 2048), "device": (1024, 2048, 4096, 8192)}
"""Of square matrices."""
COLD = {"host": 1 << 26, "device": 1 << 28}
"""Bytes of the matrices of one size, which take turns: more than a cache holds."""
ROUNDS, LEAST, CALM = 4, 3, 0.03
"""Rounds in which all sizes take turns, so that a busy machine slows all alike; and products of a size in each, behind
one that does not count: as many as take so many seconds, and at least so many."""

Timed = Callable[[], float]
"""One product with the next matrix; its seconds."""


def measure(world: World) -> Products:
    """All ranks at once, for they share caches and memory; means over the ranks. Collective."""
    rows, sides = ROWS[world.memory], SIDES[world.memory]
    value, prepare = (4, _on_host) if world.memory == "host" else (2, _on_device)
    prepared = [prepare(side, COLD[world.memory] // (side * side * value)) for side in sides]
    timed = [product(n) for n in rows for product in prepared]
    found: list[list[float]] = [[] for _ in timed]
    for _ in range(ROUNDS):
        for one, times in zip(timed, found):
            times += _some(world, one)
    means = np.array([faster(times).mean() for times in found])
    seconds = world.comm.allreduce(means) / world.size
    return Products(rows, tuple(side * side for side in sides), tuple(seconds.tolist()))


def _some(world: World, timed: Timed) -> list[float]:
    until(world.comm.Ibarrier().Test, world.idle)
    timed()
    found, end = list[float](), time.perf_counter() + CALM
    while len(found) < LEAST or time.perf_counter() < end:
        found.append(timed())
    return found


def faster(seconds: Sequence[float]) -> np.ndarray:
    """The faster half: others on the machine slow some."""
    return np.sort(seconds)[:max(1, len(seconds) // 2)]


def _on_host(side: int, count: int) -> Callable[[int], Timed]:
    from hpcmoe.kernels.linear import product
    matrices = [np.full((side, side), 1 + n, np.float32) for n in range(count)]

    def prepared(rows: int) -> Timed:
        x, turn = np.ones((rows, side), np.float32), iter(range(1 << 62))

        def timed() -> float:
            weight = matrices[next(turn) % count]
            begin = time.perf_counter()
            product(x, weight)
            return time.perf_counter() - begin
        return timed
    return prepared


def _on_device(side: int, count: int) -> Callable[[int], Timed]:
    """Those of all matrices in one graph, as a step has them: what starting each would take is not theirs."""
    import cupy

    from hpcmoe.device.gemm import Gemm
    drawn = np.random.default_rng(0).standard_normal((side, side), np.float32)  # of zeros products are quicker
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        gemm, values = Gemm(), cupy.asarray(array.narrow(drawn))
        matrices = [values.copy() for _ in range(count)]

    def prepared(rows: int) -> Timed:
        used = matrices[:min(count, 1 + isqrt((1 << 22) // rows))]
        with stream:
            x, out = values[cupy.arange(rows) % side], cupy.empty((rows, side), np.uint16)
            gemm(x, matrices[0], out)  # chooses an algorithm
            stream.synchronize()
            stream.begin_capture()
            for weight in used:
                gemm(x, weight, out)
            graph = stream.end_capture()

        def timed() -> float:
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record(stream)
            graph.launch(stream)
            end.record(stream)
            end.synchronize()
            return cupy.cuda.get_elapsed_time(begin, end) / 1e3 / len(used)
        return timed
    return prepared
