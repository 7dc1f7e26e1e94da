"""Where segments compute: at once, or on a worker thread while the main thread moves rows."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol


class Event:
    """The end of something that runs on a stream. An `exchange.interface.Flight`."""

    stage = ""

    def __init__(self, future: Future | None = None) -> None:
        """Without a future it is past already."""
        self._future = future

    def test(self) -> bool:
        """See `Flight`."""
        return self._future is None or self._future.done()

    def nap(self, seconds: float) -> None:
        """Returns at the end, or after so many seconds."""
        if self._future is not None:
            wait([self._future], seconds)

    def wait(self) -> None:
        """See `Flight`. Raises what the work raised."""
        if self._future is not None:
            self._future.result()


class Stream(Protocol):
    """Runs work in the order in which it is given."""

    def run(self, work: Callable[..., None], *arguments: Any) -> Event:
        """Begins `work(*arguments)`, or does it."""
        ...

    def busy(self) -> float:
        """Seconds that it has worked behind the caller's back, up to now."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class AtOnce:
    """The stream of the `serial` schedule: nothing runs behind its back."""

    def run(self, work: Callable[..., None], *arguments: Any) -> Event:
        """See `Stream`."""
        work(*arguments)
        return Event()

    def busy(self) -> float:
        """See `Stream`."""
        return 0.0

    def close(self) -> None:
        """See `Stream`."""


class Worker:
    """One thread. BLAS gives the interpreter's lock away, so the main thread can call MPI meanwhile."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hpcmoe-stream")
        self._worked: tuple[float, float | None] = 0.0, None  # seconds, begin of what runs; one object for two threads

    def run(self, work: Callable[..., None], *arguments: Any) -> Event:
        """See `Stream`."""
        return Event(self._pool.submit(self._run, work, *arguments))

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        before, begin = self._worked[0], time.perf_counter()
        self._worked = before, begin
        try:
            work(*arguments)
        finally:
            self._worked = before + time.perf_counter() - begin, None

    def busy(self) -> float:
        """See `Stream`."""
        before, begin = self._worked
        return before if begin is None else before + time.perf_counter() - begin

    def close(self) -> None:
        """See `Stream`."""
        self._pool.shutdown()
