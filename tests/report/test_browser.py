"""The pages in a real browser, at desktop and phone width.

No console error, no broken link, no empty figure, no sideways scrolling.
"""
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from test_report import demo

from browser import needs_chromium
from thesis_lib.core import root
from thesis_lib.report import check_html

pytestmark = needs_chromium

OPEN_ALL = """(async () => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const images = [...document.images];
  images.forEach(i => i.loading = 'eager');
  await Promise.all(images.map(i => i.decode().catch(() => {})));
  const videos = [...document.querySelectorAll('video')];
  const loaded = v => new Promise(done => {
    v.onloadeddata = v.onerror = done;
    v.preload = 'auto';
    v.load();
  });
  await Promise.all(videos.map(loaded));
  const plays = v => v.readyState > 1 && v.videoWidth > 1 && v.duration > 0;
  const width = e => e.getBoundingClientRect().width;
  const shows = i => i.complete && i.naturalWidth > 1 && i.naturalHeight > 1 && width(i) > 1;
  const leaves = e => e.getBoundingClientRect().right > innerWidth + 1;
  const scrolls = e => e.closest('.tl-scroll, .scroll, pre, math');
  const elements = [...document.querySelectorAll('body *')];
  return {
    stuck: videos.filter(v => !plays(v)).map(v => v.src.slice(0, 120)),
    empty: images.filter(i => !shows(i)).map(i => i.src.slice(0, 120)),
    unnamed: images.filter(i => !i.alt).length,
    images: images.length,
    page: document.documentElement.scrollWidth,
    window: innerWidth,
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    wide: elements.filter(e => leaves(e) && !scrolls(e)).map(e => e.tagName + '.' + e.className).slice(0, 5),
  };
})()"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "`outputs/smoke` where `make reproduce` has run, a small synthetic tree otherwise."
    done = root() / "outputs" / "smoke"
    if (done / "index.html").is_file():
        return done
    with pytest.MonkeyPatch.context() as patch:
        return demo(tmp_path_factory.mktemp("outputs"), patch).parent


def pages(home): # the index and one report of each experiment
    reports = {p.parts[-4:-2]: p for p in sorted(home.glob("*/*/*/report.html"), reverse=True)}
    return [home / "index.html", *reports.values()]


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_pages(browser, home, width, tmp_path):
    figures = 0
    for page in pages(home):
        browser.open(page.resolve().as_uri(), width)
        seen = browser.evaluate(OPEN_ALL)
        name = f"{page.relative_to(home)} at {width} px"
        assert not browser.events, f"{name}: {browser.events[:3]}"
        assert not seen["empty"], f"{name}: empty figures {seen['empty']}"
        assert not seen["stuck"], f"{name}: videos that do not play {seen['stuck']}"
        assert not seen["unnamed"], f"{name}: {seen['unnamed']} images without alternative text"
        assert seen["page"] <= width, f"{name}: the page is {seen['page']} px wide, because of {seen['wide']}"
        files = [unquote(urlsplit(link).path) for link in seen["links"] if link.startswith("file:")]
        missing = [path for path in files if not Path(path).exists()]
        assert not missing, f"{name}: broken links {missing}"
        assert browser.screenshot(tmp_path / "page.png").stat().st_size > 5000, f"{name}: the page is blank"
        figures += seen["images"]
    assert figures, "the reports show no figure"


def test_nothing_wrong(home):
    assert check_html(home) == []


def test_browser_complains(browser, tmp_path):
    "The test itself can fail: a page with a script error, a missing image and a wide box is caught."
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><script>throw Error('x')</script><img src=missing.png alt=a>"
        "<div style='width:2000px'>wide</div>"
    )
    browser.open(page.resolve().as_uri(), 390)
    seen = browser.evaluate(OPEN_ALL)
    assert {event["method"] for event in browser.events} >= {"Runtime.exceptionThrown", "Network.loadingFailed"}
    assert len(seen["empty"]) == 1 and seen["page"] > 390
