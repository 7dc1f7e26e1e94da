"""Work on rows that goes on while other things do: copies between rows and the pieces of them that travel."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from hpcmoe import array


class Aside:
    """Work on rows in `memory` (one of `array.MEMORY`): on a GPU on a stream of its own, else at once."""

    def __init__(self, memory: str) -> None:
        self.stream = self._event = None
        if memory == "device":
            from cupy.cuda import Event, Stream
            self.stream, self._event = Stream(non_blocking=True), Event(disable_timing=True)

    def follow(self) -> None:
        """It goes on behind what the current stream was given so far."""
        if self.stream is not None and self._event is not None:
            from cupy.cuda import get_current_stream
            self.stream.wait_event(get_current_stream().record())
            self._event.record(self.stream)

    @contextmanager
    def work(self) -> Iterator[None]:
        """The block gives it work."""
        if self.stream is None or self._event is None:
            yield
            return
        with self.stream:
            yield
        self._event.record(self.stream)

    def done(self) -> bool:
        """Whether it has done what it was given."""
        return self._event is None or self._event.done

    def wait(self) -> None:
        """Returns when it has."""
        if self._event is not None:
            self._event.synchronize()


class Copies:
    """One copy after another, of rows in `memory`, aside."""

    def __init__(self, memory: str) -> None:
        self._aside = Aside(memory)
        self.done, self.wait = self._aside.done, self._aside.wait

    def begin(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Copies the first of each pair to the second: arrays of one shape and dtype, without gaps."""
        with self._aside.work():
            for values, into in pairs:
                if self._aside.stream is None:
                    into[...] = values
                else:
                    array.copy(values, into, self._aside.stream)
