"""CUDA graphs: work that one stream is given again and again, as one launch."""

from collections.abc import Callable

import cupy

MOST = 1 << 14
"""Graphs that are kept; beyond, all are made anew."""


class Graphs:
    """The graphs of one stream.

    What is to become a graph must not wait, and reads and writes at the same addresses whenever its key is the same.
    Its temporary arrays come from a pool of their own that nothing else takes from: graphs of a stream never overlap.
    """

    def __init__(self, stream: cupy.cuda.Stream) -> None:
        self._stream, self._pool = stream, cupy.cuda.MemoryPool()
        self._graphs: dict[tuple, cupy.cuda.Graph | None] = {}
        self.capturing = False

    def run(self, key: tuple, work: Callable[[], None]) -> None:
        """Gives `work` to the stream: the first time call by call, the second time as it is captured, then as a graph.

        What comes but once is not worth a graph; and what is tuned or compiled at its first call must not be captured.
        """
        if len(self._graphs) >= MOST:
            self._graphs.clear()
        if key not in self._graphs:
            self._graphs[key] = None
            with cupy.cuda.using_allocator(self._pool.malloc):
                return work()
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = self._capture(work)
        graph.launch(self._stream)

    def forget(self, of: Callable[[tuple], bool]) -> None:
        """Those with such keys, which are none of the stream's any more, are made anew when they are next wanted."""
        self._graphs = {key: graph for key, graph in self._graphs.items() if not of(key)}

    def _capture(self, work: Callable[[], None]) -> cupy.cuda.Graph:
        with self._stream, cupy.cuda.using_allocator(self._pool.malloc):
            self._stream.begin_capture()
            self.capturing = True
            try:
                work()
            finally:
                self.capturing = False
                graph = self._stream.end_capture()
        return graph
