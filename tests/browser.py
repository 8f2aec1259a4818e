"""A headless Chromium, driven through the pipe of its debugging protocol; it needs nothing but the browser."""

import base64
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

FOUND = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), "")
"""Path of the browser; empty where there is none."""
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
"""Start the browser with the pipe where it expects it; a function before exec is unsafe among threads."""


def unpacked(page: str, name: str) -> str:
    """The text that an element of a page holds compressed."""
    (packed,) = re.findall(rf'id="{name}">(.*?)</script>', page, re.DOTALL)
    return zlib.decompress(base64.b64decode(packed)).decode()


class Browser:
    """A browser with one open page, from `with` to its end."""

    def __init__(self, profile: Path) -> None:
        self.profile, self.number, self.session, self.rest = profile, 0, "", b""

    def __enter__(self) -> "Browser":
        child_in, self.out = os.pipe()
        self.into, child_out = os.pipe()
        high = [fcntl.fcntl(one, fcntl.F_DUPFD, 16) for one in (child_in, child_out)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *map(str, high), FOUND, *FLAGS, f"--user-data-dir={self.profile}"],
            pass_fds=high, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for one in (child_in, child_out, *high):
            os.close(one)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.out)
        os.close(self.into)
        self.process.terminate()
        self.process.wait(30)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events in between are left out."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                read = os.read(self.into, 1 << 20)
                assert read, "the browser has ended"
                self.rest += read
            line, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path: Path, width: int, height: int = 900) -> None:
        """Open a file in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Page.navigate", url=path.as_uri())
        self.run("new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def run(self, script: str) -> Any:
        """Return the value of an expression, or of what it promises."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")
