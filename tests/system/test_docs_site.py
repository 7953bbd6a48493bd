"""The documentation site as a person sees it, in headless Chromium: nothing comes from elsewhere, and no page is too wide for a phone."""

import functools
import http.server
import shutil
import threading

import pytest
from helpers import documents
from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium: no browser here (apt-get install chromium)")


class Silent(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, without a line for each."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, and where it is served."""
    folder = tmp_path_factory.mktemp("built") / "site"
    documents.build(folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.mark.parametrize("width", [400, 1400])
def test_each_page_fits_its_width_and_asks_nothing_of_another_host(site, width):
    folder, address = site
    asked, wide = [], {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        failed = []
        page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
        page.on("pageerror", lambda error: failed.append(str(error)))
        for file in sorted(folder.rglob("index.html")):
            page.goto(address + file.relative_to(folder).parent.as_posix(), wait_until="load")
            across = page.evaluate("document.documentElement.scrollWidth")
            if across > width:
                wide[file.relative_to(folder).parent.as_posix()] = across
        page.goto(f"{address}?q=rung", wait_until="load")
        page.locator(".md-search-result__item").first.wait_for(state="attached")
        browser.close()
    assert wide == {}
    assert failed == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
