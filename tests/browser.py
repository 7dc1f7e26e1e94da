"""A headless Chromium for tests, spoken to through a pair of pipes.

    python tests/browser.py      # installs Debian's, where we are root and may
"""

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""Any of them will do."""
PACKAGES = ("chromium-headless-shell",)
"""Of Debian: the smallest of them."""
FLAGS = ("--headless", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-extensions", "--hide-scrollbars", "--force-color-profile=srgb")
BEGIN = ("import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
         "os.execv(sys.argv[3], sys.argv[3:])")
"""The browser reads commands from descriptor 3, and writes answers to 4."""
FREE = 10
"""Descriptors from here on are in nobody's way."""
PATIENCE = 60.0
"""Seconds for an answer."""


def program() -> str | None:
    """The browser, if there is one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def missing() -> str:
    """Why there can be no browser here; "" where there can."""
    return "" if program() else f"not installed: a Chromium ({PROGRAMS[0]} of Debian)"


class Tab:
    """One tab, by the DevTools protocol."""

    def __init__(self, to: int, out: int) -> None:
        """Descriptors: what is written to `to` is a command, what comes from `out` an answer or an event."""
        self._to, self._out, self._rest, self._number = to, out, b"", 0
        self.events: list[dict[str, Any]] = []
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """What the browser answers."""
        self._number += 1
        os.write(self._to, json.dumps({"id": self._number, "method": method, "params": given} | self._session).encode()
                 + b"\0")
        while (found := self._next()).get("id") != self._number:
            self.events.append(found)
        assert "error" not in found, found
        return found["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._out], [], [], PATIENCE)[0], "the browser answers no more"
            piece = os.read(self._out, 1 << 20)
            assert piece, "the browser ended"
            self._rest += piece
        one, self._rest = self._rest.split(b"\0", 1)
        return json.loads(one)

    def open(self, path: Path) -> None:
        """Loads a file, to its end."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, script: str) -> Any:
        """What an expression of JavaScript comes to, promises waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        """Of the window, in pixels of CSS."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def complaints(self) -> list[str]:
        """What the console has of errors and warnings."""
        self.value("0")
        return [json.dumps(event) for event in self.events if event["method"] == "Runtime.exceptionThrown"
                or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"))
                or (event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning"))]

    def asked(self) -> list[str]:
        """The addresses that it went to, images that a page carries itself left out."""
        found = [event["params"]["request"]["url"] for event in self.events
                 if event["method"] == "Network.requestWillBeSent"]
        return [url for url in found if not url.startswith("data:")]


@contextmanager
def tab() -> Iterator[Tab]:
    """A tab of a browser of its own, which ends with the block."""
    name = program()
    assert name
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        words = [name, *FLAGS, f"--user-data-dir={folder}", *(() if os.geteuid() else ("--no-sandbox",))]
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, FREE) for end in (to_read, from_write)]
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", BEGIN, *map(str, ends), *words], pass_fds=ends,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in (to_read, from_write, *ends):
            os.close(end)
        try:
            yield Tab(to_write, from_read)
        finally:
            os.close(to_write)
            os.close(from_read)
            try:
                process.wait(5)  # it ends with its pipe
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from debian import install
    install("tests of pages in a browser", PACKAGES, missing)
