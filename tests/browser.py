"""A real browser without a window, spoken to over pipes (Chrome DevTools Protocol); skips where there is none."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


class Page:
    """One page; `evaluate` runs JavaScript in it and waits for what it promises."""

    def __init__(self, sending: int, receiving: int) -> None:
        self._sending, self._receiving, self._number, self._rest = sending, receiving, 0, b""
        self.said: list[str] = []
        """What went wrong in the page, and what it wrote to its console."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        found = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"]["exception"].get("description"))
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 30.0) -> Any:
        """Wait until a script gives something true; the value."""
        deadline = time.monotonic() + seconds
        while not (found := self.evaluate(script)):
            assert time.monotonic() < deadline, f"{script} did not come true; the page says {self.said}"
            time.sleep(0.05)
        return found

    def type(self, text: str) -> None:
        """As from a keyboard, into what has the focus, and Enter."""
        self._call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r")

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    _session: str | None = None

    def _call(self, method: str, **values: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._sending, json.dumps(message).encode() + b"\0")
        while True:
            said = self._receive()
            if said.get("id") == self._number:
                assert "error" not in said, f"{method}: {said['error']}"
                return said["result"]
            if said.get("method") == "Runtime.exceptionThrown":
                self.said.append(str(said["params"]["exceptionDetails"]))
            elif said.get("method") == "Log.entryAdded":
                self.said.append(said["params"]["entry"]["text"])

    def _receive(self) -> Any:
        while b"\0" not in self._rest:
            read = os.read(self._receiving, 1 << 16)
            assert read, "the browser has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a browser whose profile is in `folder`."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"needs a browser: {', '.join(NAMES)}")
    theirs, ours = os.pipe()
    mine, their = os.pipe()

    def as_three_and_four() -> None:
        copies = os.dup(theirs), os.dup(their)  # either may be 3 or 4 itself
        os.dup2(copies[0], 3)
        os.dup2(copies[1], 4)

    words = [
        *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
        *("--no-first-run", "--disable-extensions", f"--user-data-dir={folder}", "--window-size=900,1000"),
    ]
    with subprocess.Popen(
        words, preexec_fn=as_three_and_four, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        os.close(theirs)
        os.close(their)
        try:
            yield Page(ours, mine)
        finally:
            process.kill()
            os.close(ours)
            os.close(mine)
