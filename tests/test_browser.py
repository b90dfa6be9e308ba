"""The pages in a real browser, at desktop and phone width: no console error, no broken link, no empty figure, no sideways scrolling.

Chromium is driven over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/); websocket-client comes with JupyterLab."""
import base64, itertools, json, shutil, subprocess, time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from test_report import demo
from thesis_lib.core import root
from thesis_lib.report import check_html

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")) if p), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on the PATH: install one to test the pages in a browser")
websocket = pytest.importorskip("websocket", reason="websocket-client is not installed; it comes with JupyterLab")

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--remote-debugging-port=0", "--remote-allow-origins=*"]
TROUBLE = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Network.loadingFailed"}
OPEN_ALL = """(async () => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const images = [...document.images]; images.forEach(i => i.loading = 'eager');
  await Promise.all(images.map(i => i.decode().catch(() => {})));
  const videos = [...document.querySelectorAll('video')];
  await Promise.all(videos.map(v => new Promise(r => { v.onloadeddata = v.onerror = r; v.preload = 'auto'; v.load(); })));
  return {stuck: videos.filter(v => !(v.readyState > 1 && v.videoWidth > 1 && v.duration > 0)).map(v => v.src.slice(0, 120)), empty: images.filter(i => !(i.complete && i.naturalWidth > 1 && i.naturalHeight > 1 && i.getBoundingClientRect().width > 1)).map(i => i.src.slice(0, 120)),
          unnamed: images.filter(i => !i.alt).length, images: images.length, page: document.documentElement.scrollWidth, window: innerWidth,
          links: [...document.querySelectorAll('a[href]')].map(a => a.href),
          wide: [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.tl-scroll, .scroll, pre, math')).map(e => e.tagName + '.' + e.className).slice(0, 5)};
})()"""


class Browser:
    "One headless tab; `call` a DevTools method, `events` are what the page complained about."

    def __init__(self, profile):
        self.process = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file, ids = Path(profile) / "DevToolsActivePort", itertools.count(1)
        deadline = time.monotonic() + 60
        while not (port_file.is_file() and len(lines := port_file.read_text().split()) == 2):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                pytest.skip("Chromium is there but does not start")
            time.sleep(.1)
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{lines[0]}{lines[1]}", timeout=60)
        self.ids, self.session, self.events, self.loaded = ids, None, [], False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"): self.call(f"{domain}.enable")

    def receive(self):
        message = json.loads(self.socket.recv())
        cancelled = message.get("params", {}).get("type") == "Media" and message["params"].get("canceled") # OPEN_ALL loads each film anew; that it then plays is a check of its own
        if message.get("method") in TROUBLE and not cancelled: self.events.append(message)
        self.loaded |= message.get("method") == "Page.loadEventFired"
        return message

    def call(self, method, **params):
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})))
        while (message := self.receive()).get("id") != number: pass
        assert "error" not in message, message
        return message["result"]

    def open(self, page, width, dark=False):
        "Load a page at a width and look at it with everything unfolded."
        self.events, self.loaded = [], False
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self.loaded: self.receive()

    def look(self): return self.call("Runtime.evaluate", expression=OPEN_ALL, awaitPromise=True, returnByValue=True)["result"]["value"]

    def screenshot(self, path, **options):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))
        return path

    def close(self):
        if hasattr(self, "socket"):
            try: self.call("Browser.close")
            except Exception: pass # it may close the connection before it answers
        self.process.terminate()
        try: self.process.wait(timeout=20)
        except subprocess.TimeoutExpired: self.process.kill()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "`outputs/smoke` where `make reproduce` has run, a small tree made here otherwise."
    done = root() / "outputs" / "smoke"
    if (done / "index.html").is_file(): return done
    with pytest.MonkeyPatch.context() as patch: return demo(tmp_path_factory.mktemp("outputs"), patch).parent


def pages(home): # the index and one report of each experiment
    reports = {p.parts[-3]: p for p in sorted(home.glob("*/*/*/report.html"), reverse=True)}
    return [home / "index.html", *reports.values()]


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_pages(browser, home, width, tmp_path):
    for page in pages(home):
        browser.open(page, width)
        seen = browser.look()
        name = f"{page.relative_to(home)} at {width} px"
        assert not browser.events, f"{name}: {browser.events[:3]}"
        assert not seen["empty"], f"{name}: empty figures {seen['empty']}"
        assert not seen["stuck"], f"{name}: films that do not play {seen['stuck']}"
        assert not seen["unnamed"], f"{name}: {seen['unnamed']} images without alternative text"
        assert seen["page"] <= width, f"{name}: the page is {seen['page']} px wide, because of {seen['wide']}"
        missing = [u for u in seen["links"] if u.startswith("file:") and not Path(unquote(urlsplit(u).path)).exists()]
        assert not missing, f"{name}: broken links {missing}"
        assert browser.screenshot(tmp_path / "page.png").stat().st_size > 5000, f"{name}: the page is blank"
    assert seen["images"], "the reports show no figure"


def test_nothing_wrong(home):
    assert check_html(home) == []


def test_browser_complains(browser, tmp_path):
    "The test itself can fail: a page with a script error, a missing image and a wide box is caught."
    page = tmp_path / "bad.html"
    page.write_text("<!DOCTYPE html><script>throw Error('x')</script><img src=missing.png alt=a><div style='width:2000px'>wide</div>")
    browser.open(page, 390)
    seen = browser.look()
    assert {e["method"] for e in browser.events} >= {"Runtime.exceptionThrown", "Network.loadingFailed"}
    assert len(seen["empty"]) == 1 and seen["page"] > 390
