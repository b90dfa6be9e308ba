"""A headless Chromium, driven over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/).

websocket-client comes with JupyterLab.
"""
import base64
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

websocket = pytest.importorskip("websocket", reason="websocket-client is not installed; it comes with JupyterLab")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium or Chrome on the PATH: install one to test in a browser"
)

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--remote-debugging-port=0", "--remote-allow-origins=*",
]
TROUBLE = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Network.loadingFailed"}


class Browser:
    "One headless tab; `call` a DevTools method, `events` are what the page complained about."

    def __init__(self, profile):
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file, lines = Path(profile) / "DevToolsActivePort", []
        deadline = time.monotonic() + 60
        while len(lines) != 2:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                pytest.skip("Chromium is there but does not start")
            time.sleep(.1)
            lines = port_file.read_text().split() if port_file.is_file() else []
        port, path = lines
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=60)
        self.ids, self.session, self.events, self.loaded = itertools.count(1), None, [], False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def receive(self):
        message = json.loads(self.socket.recv())
        # a page that loads its videos anew; whether they play is a check of its own
        cancelled = message.get("params", {}).get("type") == "Media" and message["params"].get("canceled")
        if message.get("method") in TROUBLE and not cancelled:
            self.events.append(message)
        self.loaded |= message.get("method") == "Page.loadEventFired"
        return message

    def call(self, method, **params):
        number = next(self.ids)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        message = self.receive()
        while message.get("id") != number:
            message = self.receive()
        assert "error" not in message, message
        return message["result"]

    def open(self, url, width, dark=False):
        "Load a page at a width."
        self.events, self.loaded = [], False
        size = dict(width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        while not self.loaded:
            self.receive()

    def evaluate(self, expression):
        "Value of an expression in the page, of a promise when it is kept; None for undefined."
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression, seconds):
        "The first value that is true; fails with what was waited for."
        deadline = time.monotonic() + seconds
        value = self.evaluate(expression)
        while not value:
            assert time.monotonic() < deadline, f"after {seconds} s still not: {expression}"
            time.sleep(.2)
            value = self.evaluate(expression)
        return value

    def screenshot(self, path, **options):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))
        return path

    def close(self):
        if hasattr(self, "socket"):
            try:
                self.call("Browser.close")
            except Exception:
                pass # it may close the connection before it answers
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
