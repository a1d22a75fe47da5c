"""Firefox as Debian has it, driven by the protocol that it speaks itself: no driver and no library beside it.

Playwright asks this Firefox for commands that it does not have, and geckodriver is not packaged with it. Marionette is
what geckodriver would speak: JSON over a socket, each message with its length in front.
Source: https://firefox-source-docs.mozilla.org/testing/marionette/Protocol.html
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
START = 60.0  # seconds that a first start may take on a busy machine
PATIENCE = 30_000  # milliseconds that a script may wait for the page
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element: WebDriver, section 12

_PREFERENCES = {
    "marionette.port": 0,  # any free one; Firefox writes which into its profile
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.safebrowsing.downloads.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.systemAddon.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,#remote-settings-dummy/v1",
    "toolkit.telemetry.reportingpolicy.firstRun": False,
}
_UNTIL = """
const [expression, done] = arguments;
const holds = new Function(`return (${expression})`);
const look = () => { const found = holds(); found ? done(found) : requestAnimationFrame(look); };
look();
"""


class Firefox:
    """One window of one Firefox, over its Marionette socket."""

    def __init__(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            self._stream = connection.makefile("rwb")  # keeps it open
        self._asked = 0
        self._message()  # says hello
        self.ask("WebDriver:NewSession", {"capabilities": {"alwaysMatch": {"timeouts": {"script": PATIENCE}}}})

    def close(self) -> None:
        """Let go of the connection."""
        self._stream.close()

    def ask(self, command: str, parameters: dict[str, Any] | None = None) -> Any:
        """Send a command and give what comes back; fails where Firefox refuses it."""
        self._asked += 1
        text = json.dumps([0, self._asked, command, parameters or {}]).encode()
        self._stream.write(b"%d:%b" % (len(text), text))
        self._stream.flush()
        _, number, error, result = self._message()
        assert (number, error) == (self._asked, None), error
        return result["value"] if isinstance(result, dict) and set(result) == {"value"} else result

    def _message(self) -> Any:
        digits = b""
        while not digits.endswith(b":"):
            one = self._stream.read(1)
            assert one, "Firefox has ended"
            digits += one
        return json.loads(self._stream.read(int(digits[:-1])))

    def open(self, address: str) -> None:
        """Go there, and wait until it is loaded."""
        self.ask("WebDriver:Navigate", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script in the page returns; it finds its arguments in ``arguments``."""
        return self.ask("WebDriver:ExecuteScript", {"script": script, "args": list(arguments)})

    def until(self, expression: str) -> Any:
        """Wait for the page until an expression there holds; gives its value. Fails after PATIENCE."""
        return self.ask("WebDriver:ExecuteAsyncScript", {"script": _UNTIL, "args": [expression]})

    def choose(self, selector: str, paths: Sequence[Path]) -> None:
        """Give files to an input, as whoever chooses them in the dialog does."""
        found = self.ask("WebDriver:FindElement", {"using": "css selector", "value": selector})
        text = "\n".join(str(path) for path in paths)
        self.ask("WebDriver:ElementSendKeys", {"id": found[ELEMENT], "text": text})

    def click(self, selector: str) -> None:
        """Click on an element as a hand does: it must be in sight."""
        found = self.ask("WebDriver:FindElement", {"using": "css selector", "value": selector})
        self.ask("WebDriver:ElementClick", {"id": found[ELEMENT]})

    def screenshot(self) -> bytes:
        """The window as a PNG."""
        return base64.b64decode(self.ask("WebDriver:TakeScreenshot", {"full": False}))

    def complaints(self, address: str) -> list[str]:
        """Errors and warnings of the browser's console about pages of an address, since the last time."""
        self.ask("Marionette:SetContext", {"value": "chrome"})
        script = """
            const found = Services.console.getMessageArray().map(String).filter((text) => text.includes(arguments[0]));
            Services.console.reset();
            return found;
        """
        found: list[str] = self.ask("WebDriver:ExecuteScript", {"script": script, "args": [address]})
        self.ask("Marionette:SetContext", {"value": "content"})
        return found


@contextmanager
def firefox(width: int = 1280, height: int = 800, **preferences: object) -> Iterator[Firefox]:
    """Start a Firefox without a window on the screen, in a profile of its own, until the block ends."""
    assert FIREFOX is not None
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder)
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in
                 (_PREFERENCES | preferences).items()]  # fmt: skip
        (profile / "user.js").write_text("".join(lines))
        window = (f"--width={width}", f"--height={height}")
        command = [
            FIREFOX,
            "--headless",
            "--marionette",
            "--remote-allow-system-access",
            "--no-remote",
            *window,
            "--profile",
            folder,
        ]
        log = (profile / "log").open("w")
        with log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                with closing(Firefox(_port(profile, process))) as browser:
                    yield browser
            finally:
                process.terminate()


def _port(profile: Path, process: subprocess.Popen[bytes]) -> int:
    written = profile / "MarionetteActivePort"
    end = time.monotonic() + START
    while not (written.exists() and written.read_text()):
        assert process.poll() is None, (profile / "log").read_text()
        assert time.monotonic() < end, "Firefox does not open its port"
        time.sleep(0.05)
    return int(written.read_text())
