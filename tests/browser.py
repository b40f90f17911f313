"""Drive a real browser in tests without extra packages: Chromium via chromedriver, or Firefox directly.

Both are looked for on the PATH. DISTILL_BROWSER=chromium or DISTILL_BROWSER=firefox leaves the other one out.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

_START_SECONDS = 60.0
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FIREFOX = ("firefox", "firefox-esr")
_OFF_KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004", "Left": "\ue012", "Right": "\ue014"}
_PATHS = {
    "Navigate": ("POST", "url"),
    "ExecuteScript": ("POST", "execute/sync"),
    "PerformActions": ("POST", "actions"),
    "TakeScreenshot": ("GET", "screenshot"),
    "Log": ("POST", "se/log"),
    "Cdp": ("POST", "goog/cdp/execute"),
    "Quit": ("DELETE", ""),
}


def missing(name: str) -> str | None:
    """Why tests cannot drive this browser; None where they can."""
    wanted = os.environ.get("DISTILL_BROWSER", name)
    if wanted != name:
        return f"DISTILL_BROWSER={wanted}"
    if name == "firefox":
        return None if _found(_FIREFOX) else "no firefox on the PATH"
    if not _found(_CHROMIUM):
        return "no chromium on the PATH"
    return None if shutil.which("chromedriver") else "no chromedriver on the PATH"


@contextlib.contextmanager
def browser(name: str, folder: Path, *, dark: bool = False) -> Iterator["Browser"]:
    """A headless browser, closed at the end.

    Args:
        name: `chromium` or `firefox`.
        folder: for its profile.
        dark: whether its user prefers dark pages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = _Firefox(folder, dark) if name == "firefox" else _Chromium(folder, dark)
    try:
        yield started
    finally:
        started.close()


class Browser:
    """What both do; `_command` is WebDriver's, under Marionette's name for it."""

    def open(self, address: str) -> None:
        self._command("Navigate", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns, a promise's value included."""
        return self._command("ExecuteScript", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: Any, seconds: float = 30.0) -> Any:
        """What a script returns, as soon as that is true.

        Raises:
            TimeoutError: it was not in time.
        """
        end = time.monotonic() + seconds
        while not (value := self.run(script, *arguments)):
            if time.monotonic() > end:
                raise TimeoutError(script)
            time.sleep(0.02)
        return value

    def press(self, *keys: str) -> None:
        """Press keys, one after another, as a person does."""
        strokes = [
            {"type": kind, "value": _OFF_KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")
        ]
        self._command("PerformActions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def click(self, selector: str) -> None:
        """Click at the middle of the first element that a CSS selector finds."""
        x, y = self.run(
            "const e = document.querySelector(arguments[0]);"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2].map(Math.round)",
            selector,
        )
        moves = [
            {"type": "pointerMove", "x": x, "y": y, "origin": "viewport", "duration": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self._command("PerformActions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})

    def screenshot(self) -> bytes:
        """The window, as a PNG."""
        return base64.b64decode(self._command("TakeScreenshot", {"full": False}))

    def resize(self, width: int, height: int) -> None:
        raise NotImplementedError

    def errors(self) -> list[str]:
        """What the page has brought into the console as errors and warnings since the last call."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _command(self, name: str, parameters: dict[str, Any]) -> Any:
        raise NotImplementedError


class _Chromium(Browser):
    """Through chromedriver, by HTTP."""

    def __init__(self, folder: Path, dark: bool) -> None:
        log = folder / "chromedriver.log"
        with log.open("wb") as output:
            self._driver = subprocess.Popen(
                ["chromedriver", "--port=0"], stdout=output, stderr=subprocess.STDOUT
            )
        try:
            said = _wait(
                lambda: re.search(r"started successfully on port (\d+)", log.read_text()), "chromedriver"
            )
            self._client = httpx.Client(base_url=f"http://127.0.0.1:{said[1]}", timeout=120, trust_env=False)
            options = {
                "binary": _found(_CHROMIUM),
                "args": [
                    "--headless=new",
                    "--no-sandbox",  # containers run tests as root
                    "--disable-dev-shm-usage",
                    f"--user-data-dir={folder / 'profile'}",
                ],
            }
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            answer = self._client.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()
            if "sessionId" not in answer["value"]:
                raise RuntimeError(answer["value"]["message"])
            self._session = answer["value"]["sessionId"]
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            self._cdp("Emulation.setEmulatedMedia", {"features": [scheme]})
            self.resize(1280, 900)
        except BaseException:
            _stop(self._driver)
            raise

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._cdp("Emulation.setDeviceMetricsOverride", metrics)

    def errors(self) -> list[str]:
        entries = self._command("Log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def close(self) -> None:
        with contextlib.suppress(httpx.HTTPError):
            self._command("Quit", {})
        self._client.close()
        _stop(self._driver)

    def _cdp(self, name: str, parameters: dict[str, Any]) -> Any:
        return self._command("Cdp", {"cmd": name, "params": parameters})

    def _command(self, name: str, parameters: dict[str, Any]) -> Any:
        method, path = _PATHS[name]
        body = json.dumps(parameters).encode() if method == "POST" else None
        value = self._client.request(
            method, f"/session/{self._session}/{path}".rstrip("/"), content=body
        ).json()
        if isinstance(value["value"], dict) and "error" in value["value"]:
            raise RuntimeError(f"{name}: {value['value']['message']}")
        return value["value"]


class _Firefox(Browser):
    """Through Marionette, the protocol under geckodriver: `length:[0, id, name, parameters]` on a socket."""

    def __init__(self, folder: Path, dark: bool) -> None:
        profile = folder / "profile"
        profile.mkdir()
        settings = {
            "marionette.port": 0,
            "layout.css.prefers-color-scheme.content-override": 0 if dark else 1,
            "datareporting.policy.dataSubmissionEnabled": False,
            "browser.shell.checkDefaultBrowser": False,
            "app.update.auto": False,
        }
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in settings.items()]
        (profile / "user.js").write_text("\n".join(lines))
        executable = _found(_FIREFOX)
        assert executable is not None
        self._id = 0
        with (folder / "firefox.log").open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(executable, "--headless", "--no-remote", "--profile", str(profile), "--marionette"),
                    "--remote-allow-system-access",  # errors are in the browser's console, not in a page's
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HOME": str(folder)},
            )
        try:
            port = profile / "MarionetteActivePort"
            number = int(_wait(lambda: port.is_file() and port.read_text().strip(), "firefox"))
            self._socket = socket.create_connection(("127.0.0.1", number), timeout=120)
            self._stream = self._socket.makefile("rb")
            self._receive()  # who it is
            self._send("WebDriver:NewSession", {})
            self.resize(1280, 900)
        except BaseException:
            _stop(self._process)
            raise

    def resize(self, width: int, height: int) -> None:
        self._send("WebDriver:SetWindowRect", {"width": width, "height": height})

    def errors(self) -> list[str]:
        self._send("Marionette:SetContext", {"value": "chrome"})
        try:
            return self.run(
                "const found = Services.console.getMessageArray().filter((message) =>"
                " message instanceof Ci.nsIScriptError && message.sourceName.startsWith('file:'))"
                ".map((message) => message.message);"
                "Services.console.reset(); return found"
            )
        finally:
            self._send("Marionette:SetContext", {"value": "content"})

    def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._send("Marionette:Quit", {"flags": ["eForceQuit"]})
        self._stream.close()
        self._socket.close()
        _stop(self._process)

    def _command(self, name: str, parameters: dict[str, Any]) -> Any:
        answer = self._send(f"WebDriver:{name}", parameters)
        return answer.get("value") if isinstance(answer, dict) else answer

    def _send(self, name: str, parameters: dict[str, Any]) -> Any:
        self._id += 1
        message = json.dumps([0, self._id, name, parameters]).encode()
        self._socket.sendall(str(len(message)).encode() + b":" + message)
        _, _, error, answer = self._receive()
        if error:
            raise RuntimeError(f"{name}: {error['message']}")
        return answer

    def _receive(self) -> Any:
        digits = b""
        while not digits.endswith(b":"):
            part = self._stream.read(1)
            if not part:
                raise RuntimeError("firefox has ended")
            digits += part
        return json.loads(self._stream.read(int(digits[:-1])))


def _found(names: tuple[str, ...]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


def _wait(condition: Any, name: str) -> Any:
    end = time.monotonic() + _START_SECONDS
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{name} did not start within {_START_SECONDS:.0f} s")
        time.sleep(0.05)
    return value


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
