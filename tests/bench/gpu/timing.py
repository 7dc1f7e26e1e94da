"""Medians of what takes turns, on a GPU and in PyTorch beside it."""

import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import cupy

Timed = Callable[[], float]
"""Does something and says how many seconds it took."""
ROUNDS = 21
BUDGET = 8.0
"""Seconds after which no further round begins, behind the third."""


def medians(contest: dict[str, Timed], rounds: int = ROUNDS, budget: float = BUDGET) -> dict[str, float]:
    """Median seconds of each; they take turns, and a first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in contest}
    begin = 0.0
    for number in range(rounds + 1):
        if number == 1:
            begin = time.perf_counter()
        if number > 3 and time.perf_counter() - begin > budget:
            break
        for name, timed in contest.items():
            seconds = timed()
            if number:
                found[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def on_stream(stream: cupy.cuda.Stream, work: Callable[[], object], parts: int) -> Timed:
    """Times `work`, by events, in seconds of one of its `parts`.

    It goes behind another run of itself, so that the stream works while it is launched.
    """
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()

    def timed() -> float:
        with stream:
            work()
            begin.record()
            work()
            end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(begin, end) / 1000 / parts
    return timed


def captured(stream: cupy.cuda.Stream, work: Callable[[], object]) -> Callable[[], None]:
    """`work` as a graph.

    It runs before, so that products have their algorithms and the pool has what it will ask for. The graph keeps no
    memory: what `work` allocates may be anything's later, so allocate nothing between this and the graph's end.
    """
    with stream:
        work()
        work()
        stream.synchronize()
        stream.begin_capture()
        work()
        graph = stream.end_capture()
    return lambda: graph.launch(stream)


def both(stream: cupy.cuda.Stream, work: Callable[[], object], parts: int) -> dict[str, Timed]:
    """`work` as a graph, and launched kernel by kernel."""
    return {"graph": on_stream(stream, captured(stream, work), parts), "launched": on_stream(stream, work, parts)}


class Peer:
    """peers.py, in a Python that has PyTorch; without one ("") there is none."""

    def __init__(self, python: str) -> None:
        command = [python, str(Path(__file__).with_name("peers.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True) if python else None
        if self._process and self._process.stdout and not self._process.stdout.readline():
            self._process = None  # it has said why; ours go on without it

    def beside(self, row: str) -> dict[str, Timed]:
        """PyTorch's side of `row` (see peers.py), for `medians`."""
        return {"peer": lambda: self._ask(row)} if self._process else {}

    def _ask(self, row: str) -> float:
        assert self._process and self._process.stdin and self._process.stdout
        self._process.stdin.write(row + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"PyTorch's side of {row} ended with code {self._process.wait()}")
        return float(answer)

    def close(self) -> None:
        """Ends it."""
        if self._process:
            self._process.communicate()
