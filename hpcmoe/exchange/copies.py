"""Copies between rows and the pieces of them that travel, which go on while other things do."""

from collections.abc import Iterable
from typing import Any

from hpcmoe import array


class Copies:
    """One copy after another, of rows in `memory` (one of `array.MEMORY`); on a GPU on a stream of their own."""

    def __init__(self, memory: str) -> None:
        self._stream = self._event = None
        if memory == "device":
            from cupy.cuda import Event, Stream
            self._stream, self._event = Stream(non_blocking=True), Event(disable_timing=True)

    def begin(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Copies the first of each pair to the second: arrays of one shape and dtype, without gaps."""
        if self._stream is None or self._event is None:
            for values, into in pairs:
                into[...] = values
            return
        for values, into in pairs:
            array.copy(values, into, self._stream)
        self._event.record(self._stream)

    def done(self) -> bool:
        """Whether those begun last are at their end."""
        return self._event is None or self._event.done

    def wait(self) -> None:
        """Returns when they are."""
        if self._event is not None:
            self._event.synchronize()
