"""The file below an HDF5 file that is being written.

Where a disk is full or a quota used up, HDF5 cannot even close its file: it tries again when the process ends, and then
crashes. So it writes through here: after the first failure all is taken and nothing written, HDF5 ends in peace, and
what failed is known by its errno instead of by HDF5's words. It reads what it wrote again (heaps of strings, nodes of
its trees), and crashes where something else is there: so that is kept in memory from then on.
"""

import os
from pathlib import Path

KEPT = 1 << 20
"""Bytes of the longest write that is kept after a failure: longer ones are data, which HDF5 does not read again."""


class Disk:
    """A new file at `path`, for h5py's `fileobj` driver. Raises `OSError` where it cannot be opened, and only there."""

    def __init__(self, path: Path) -> None:
        self.failure: OSError | None = None
        """the first one; all that came after it is lost"""
        self._lost: list[tuple[int, bytes]] = []
        """what was not written: where, and what; later ones count"""
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._handle).st_size}
        self._at = start[whence] + offset
        return self._at

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """See `io.RawIOBase`. What h5py knows file objects by; HDF5 itself calls `readinto`."""
        left = os.fstat(self._handle).st_size - self._at
        data = os.pread(self._handle, left if size < 0 else size, self._at)
        self._at += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        """See `io.RawIOBase`; after a failure all of `buffer` is filled, with zeros where nothing was written."""
        begin, into = self._at, memoryview(buffer).cast("B")
        count = os.preadv(self._handle, [into], begin)
        if self.failure:
            into[count:] = bytes(len(into) - count)
            for at, data in self._lost:
                first, end = max(begin, at), min(begin + len(into), at + len(data))
                if first < end:
                    into[first - begin:end - begin] = data[first - at:end - at]
            count = len(into)
        self._at += count
        return count

    def write(self, data: memoryview) -> int:
        """Writes all of `data`, or notes why not."""
        left = memoryview(data).cast("B")
        try:
            while left and not self.failure:
                count = os.pwrite(self._handle, left, self._at)
                left, self._at = left[count:], self._at + count
        except OSError as failure:
            self.failure = failure
        if left and len(left) <= KEPT:
            self._lost.append((self._at, bytes(left)))
        self._at += len(left)
        return len(data)

    def truncate(self, size: int | None = None) -> None:
        """Cuts or lengthens the file, or notes why not."""
        try:
            if not self.failure:
                os.ftruncate(self._handle, self._at if size is None else size)
        except OSError as failure:
            self.failure = failure

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """Waits until all is on disk, or notes why not."""
        try:
            if not self.failure:
                os.fsync(self._handle)
        except OSError as failure:
            self.failure = failure
        finally:
            os.close(self._handle)
