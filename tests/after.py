"""A notice that comes at a known step."""

import signal

from hpcmoe.notice import Notice


class After(Notice):
    """Has a reason to end, on one rank, after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def reason(self, ahead: float = 0.0) -> int:
        self.left -= 1
        return signal.SIGUSR1 if self.left < 0 else 0
