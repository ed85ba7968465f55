"""Real browsers on real clusters: Debian's Chromium, headless, on the pages that `examples/start.py` serves.

A person is a browser context with one page; what the page's console complains of fails the test.  What
the pages look like at the end of each test is kept as a picture, in build/screenshots or PERDURE_SCREENSHOTS.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from browser.person import Person
from processes.cluster import ROOT, Cluster, running_cluster

# As root, and on machines without Google's hosts.
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE_MS = 20_000
"""For what should take well under a second, on a machine that is busy with other things too."""


# Not for the session: while its driver runs, this thread has a running loop, which other tests cannot bear.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for the tests of a module."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("there is no chromium: ./scripts/test installs it, or `apt-get install chromium` does")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with all examples."""
    options = ("--http", "127.0.0.1:0", "--idle-evict", "0.5")
    data = tmp_path_factory.mktemp("site") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAT_PAUSE_S", "0")  # all of them write from one address
        with running_cluster(ROOT / "examples" / "start.py", data, options=options) as cluster:
            patch.undo()  # the cluster has it, and other tests' clusters do not
            yield cluster


@pytest.fixture(scope="module")
def url(site: Cluster) -> str:
    """Where the site is."""
    return (site.data / "http").read_text().strip()


@pytest.fixture
def person(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Person]]:
    """Makes people; `person(dark=True, width=400)`."""
    people: list[Person] = []

    def make(*, dark: bool = False, width: int = 1180, height: int = 760) -> Person:
        context = browser.new_context(
            color_scheme="dark" if dark else "light", viewport={"width": width, "height": height}
        )
        context.set_default_timeout(PATIENCE_MS)
        people.append(Person(context.new_page(), url))
        return people[-1]

    yield make
    folder = Path(os.environ.get("PERDURE_SCREENSHOTS", ROOT / "build" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    for number, somebody in enumerate(people, 1):
        somebody.page.screenshot(path=folder / f"{request.node.name}-{number}.png")
    for somebody in people:
        somebody.page.context.close()
    complaints = [text for somebody in people for text in somebody.complaints]
    assert not complaints, f"the browser's console says: {complaints}"
