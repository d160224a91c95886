"""The status page in a real browser: with a daemon that runs, and with what is hard to show."""

from collections.abc import Iterator

import pytest

from leasecache.invalidation import page
from leasecache.invalidation.server import StatusServer
from leasecache.invalidation.status import Monitor
from leasecache.lab import wait_until
from tests.fix_browser import Browser
from tests.fix_daemon import WITHIN, World
from tests.unit.test_status_page import HOSTILE, full

CONTRAST = """
const lightness = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const color = getComputedStyle(e).backgroundColor;
    if (color !== "rgba(0, 0, 0, 0)") return color;
  }
  return "rgb(255, 255, 255)";
};
const shown = [...document.querySelectorAll("main *, header *, footer *")]
  .filter(e => !e.closest("svg") && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
return Math.min(...shown.map(e => {
  const [a, b] = [lightness(getComputedStyle(e).color), lightness(ground(e))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}));
"""


@pytest.fixture
def served() -> Iterator[str]:
    """The URL of a page on which something is wrong everywhere, under hostile names."""
    monitor = full(HOSTILE[0])
    for name in HOSTILE[1:]:
        monitor.bumped(name)
    server = StatusServer(("127.0.0.1", 0), monitor)
    server.start()
    yield f"http://{server.address}/"
    server.close()


@pytest.mark.parametrize("postgres_version", [18], indirect=True, scope="session", ids=["pg18"])
def test_a_running_daemon(primary_world: World, browser: Browser) -> None:
    """The page shows a write and a node that goes without being loaded again, and says when nobody answers it.

    Nothing that the daemon shows or logs meanwhile has the password of its dsn.
    """
    world = primary_world
    configured = world.daemon.config.read_text(encoding="utf-8").replace("@127", ":s3cr3t@127", 1)
    assert "s3cr3t" in configured
    world.daemon.config.write_text(configured, encoding="utf-8")
    world.daemon.start().streaming()
    wait_until(lambda: world.daemon.get("/readyz")[0] == 200, WITHIN, "readiness")
    browser.open(f"http://{world.daemon.address}/")
    assert browser.text("h1") == "leasecache daemon\nready"
    assert world.memcached.address in browser.text("#nodes")
    assert "up" in browser.text("#nodes .good")
    browser.run("window.loaded = 'once'; const after = setTimeout; setTimeout = (f, ms) => after(f, ms / 10)")
    world.write("insert into media values (1, 'a'), (2, 'b')")
    row = "return [...document.querySelectorAll('#tables tr')].map(r => [...r.cells].map(c => c.innerText))"
    wait_until(lambda: ["public.media", "2"] in [[r[0], r[2]] for r in browser.run(row)], WITHIN, "two rows")
    world.memcached.kill()
    world.write("insert into media values (3, 'a')")
    wait_until(lambda: browser.text("#nodes .bad") == "down", WITHIN, "a node that is down")
    world.memcached.restart()
    wait_until(lambda: browser.text("#nodes .bad") == "", WITHIN, "no node that is down")
    told = [world.daemon.get(path)[1] for path in ("/", "/status.json", "/metrics", "/readyz")]
    assert "s3cr3t" not in "".join([*told, world.daemon.log()])
    world.daemon.kill()
    wait_until(lambda: "has not answered" in browser.text("#silent"), WITHIN, "a page that knows that it is old")
    assert browser.run("return window.loaded") == "once"
    assert all("net::ERR_" in complaint for complaint in browser.complaints())  # nobody is there any more


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_legible(served: str, browser: Browser, scheme: str) -> None:
    """In light and dark every text has the contrast that WCAG AA asks for, and nothing sticks out on a phone."""
    browser.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    for width in (1200, 360):
        browser.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        browser.open(served)
        assert browser.run(CONTRAST) >= 4.5
        assert browser.run("return document.documentElement.scrollWidth") == width
    browser.tell("Emulation.clearDeviceMetricsOverride")


def test_hostile_names_are_text(served: str, browser: Browser) -> None:
    """No name becomes an element, and the browser has nothing to complain of: the page keeps to its own policy."""
    browser.complaints()  # of other pages
    browser.open(served)
    assert browser.run("return [document.scripts.length, document.images.length]") == [1, 0]
    text = browser.text("#errors")
    assert all(name.strip("\x00") in text for name in HOSTILE[:3])
    assert browser.complaints() == []
    browser.run("const s = document.createElement('script'); s.text = 'window.ran = true'; document.body.append(s)")
    assert browser.run("return window.ran") is None
    assert "Content Security Policy" in browser.complaints()[0]


def test_a_page_without_javascript(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where scripts are off, the page is loaded again by itself."""
    monkeypatch.setattr(page, "REFRESH", 1)
    monitor = Monitor()
    server = StatusServer(("127.0.0.1", 0), monitor)
    server.start()
    try:
        browser.tell("Emulation.setScriptExecutionDisabled", value=True)
        browser.open(f"http://{server.address}/")
        assert "not streaming" in browser.text("#gate")
        monitor.connected("standby", "a test")
        wait_until(lambda: "standby" in browser.text("#gate"), WITHIN, "another page")
    finally:
        browser.tell("Emulation.setScriptExecutionDisabled", value=False)
        server.close()
