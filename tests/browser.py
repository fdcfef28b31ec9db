"""A headless Chromium over its DevTools protocol: as little as a test of a page needs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
_KEYS = {"Enter": (13, "\r"), " ": (32, " "), "ArrowRight": (39, ""), "ArrowDown": (40, ""), "ArrowLeft": (37, "")}


class Page:
    """A tab: keys, clicks and JavaScript, each waiting for its answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.loop, self.socket, self.count = loop, socket, 0
        self.errors: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return asyncio.run_coroutine_threadsafe(self._call(method, params), self.loop).result(30)

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        await self.socket.send_str(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            message = json.loads(await self.socket.receive_str())
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(message["params"]))
            if message.get("id") == self.count:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def js(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, f"{expression} is still false"
            time.sleep(0.05)

    def open(self, url: str, ready: str = "!!document.querySelector('#grid button')", seconds: float = 10) -> None:
        """A page, when it is loaded and the expression ``ready`` is true of it; by default, the page of a review."""
        self.call("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && {ready}", seconds)

    def press(self, *keys: str) -> None:
        for key in keys:
            code, text = _KEYS[key] if key in _KEYS else (ord(key.upper()), key)
            event = {"key": key, "windowsVirtualKeyCode": code, "text": text}
            self.call("Input.dispatchKeyEvent", type="keyDown", **event)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector: str) -> None:
        """A press of the mouse where the element really is: what covers it would take it."""
        found = f"document.querySelector({selector!r})"
        x, y = self.js(
            f"{found}.scrollIntoView({{block: 'center'}}), "
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])({found}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path, width: int = 1200, height: int = 800, *, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """A tab of a browser of its own, which ends with the block."""
    assert CHROMIUM
    flags = ("headless=new", "remote-debugging-port=0", f"user-data-dir={profile}", "window-size=1200,900")
    # In a container there is neither a sandbox nor much shared memory.
    flags += ("no-sandbox", "disable-dev-shm-usage", "disable-gpu", "no-first-run", "disable-extensions")
    command = [CHROMIUM, *(f"--{flag}" for flag in flags), "about:blank"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    session: aiohttp.ClientSession | None = None
    try:
        session, page = asyncio.run_coroutine_threadsafe(_connect(profile, loop), loop).result(40)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        yield page
    finally:
        if session:
            asyncio.run_coroutine_threadsafe(session.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        os.killpg(running.pid, 9)
        running.wait()


async def _connect(profile: Path, loop: asyncio.AbstractEventLoop) -> tuple[aiohttp.ClientSession, Page]:
    file = profile / "DevToolsActivePort"
    while not (file.is_file() and file.read_text().count("\n")):
        await asyncio.sleep(0.05)
    port = file.read_text().split()[0]
    # A browser's own variables for proxies are not for a port of this machine.
    session = aiohttp.ClientSession(trust_env=False)
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        tab = next(tab for tab in await answer.json() if tab["type"] == "page")
    return session, Page(loop, await session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0))
