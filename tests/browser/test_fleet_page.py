"""The fleet's page in a real browser: at two widths, by keyboard, in the dark, and with hostile profiles."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import sync_playwright

from formats.arm.sysreg import describe
from proxy.fleet.host import FleetHost
from proxy.fleet.matrix import judge_fleet
from proxy.fleet.page import render
from proxy.hosts.profile_file import load_profile
from proxy.policy.policy import Policy
from tests.proxy.fleet.test_matrix import FILES
from tests.proxy.helpers import EVERYTHING, pairing, rules

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

PHONE, DESK = (360, 740), (1280, 900)
WIDTHS = pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])
HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">'
FIRST = "tbody tr:first-child td:nth-child(3) button"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium: the system's, or playwright's own where there is none."""
    program = shutil.which("chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the lab's hosts, of which one has a description that wants to be more than text."""
    hosts: list[FleetHost] = []
    for path in FILES:
        profile = load_profile(path)
        hosts.append(FleetHost(path.stem, replace(profile, description=HOSTILE) if not hosts else profile))
    invariant = {
        register: "listed" for host in hosts for register in host.profile.values if describe(register).invariant
    }
    policy = Policy(tuple(pairing(host.profile.midr) for host in hosts), rules(invariant), accept=EVERYTHING)
    file = tmp_path_factory.mktemp("page") / "fleet.html"
    file.write_text(render(judge_fleet(hosts, policy, lambda _: None), f"all listed {HOSTILE}"), encoding="utf-8")
    return file


@contextmanager
def opened(browser: Browser, file: Path, size: tuple[int, int], scheme: str = "light") -> Iterator[Page]:
    """Open the page; it must ask for nothing but itself, and make no error."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if scheme == "dark" else "light"
    )
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    yield page
    assert asked == [file.as_uri()]
    assert said == []
    context.close()


@WIDTHS
@SCHEMES
def test_the_page_fits_and_says_what_the_matrix_says(
    browser: Browser, page_file: Path, size: tuple[int, int], scheme: str
) -> None:
    with opened(browser, page_file, size, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.locator("td button").count() == 30
        assert page.locator(FIRST).inner_text() == "3 swapped"
        assert page.locator("td button.refused").count() == 8
        assert page.locator("td button.is").count() == 3
        assert "bookworm-n1, trixie-n1" in page.locator("ol").inner_text()
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(13, 17, 23)" if scheme == "dark" else "rgb(255, 255, 255)")


@WIDTHS
@SCHEMES
def test_text_stands_out(browser: Browser, page_file: Path, size: tuple[int, int], scheme: str) -> None:
    """Contrast of 4.5 to 1 at least, by the Web Content Accessibility Guidelines."""
    script = """
      (selector) => {
        const light = (text) => text.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255)
          .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
          .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
        const seen = document.querySelector(selector);
        let under = seen;
        while (getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)") under = under.parentElement;
        const both = [getComputedStyle(seen).color, getComputedStyle(under).backgroundColor].map(light).sort();
        return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
      }
    """
    with opened(browser, page_file, size, scheme) as page:
        for selector in ("h1", ".faint", "td button.is", "td button.repaired", "td button.refused", "th", "td.self"):
            assert page.evaluate(script, selector) >= 4.5, selector


@WIDTHS
def test_by_keyboard_alone(browser: Browser, page_file: Path, size: tuple[int, int]) -> None:
    with opened(browser, page_file, size) as page:
        label = "document.activeElement.getAttribute('aria-label')"
        page.keyboard.press("Tab")
        assert page.evaluate(label) == "Heat map"
        page.keyboard.press("Tab")
        assert page.evaluate(label) == "bookworm-a57 to bookworm-a72: 3 swapped"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("ArrowRight")
        assert page.evaluate(label) == "bookworm-a57 to bookworm-n1: 25 swapped"
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        assert page.evaluate(label) == "trixie-a57 to bookworm-n1: 25 swapped, 17 left out"
        page.keyboard.press("Enter")
        dialog = page.locator("dialog")
        assert dialog.is_visible()
        assert page.locator("dialog h2").inner_text() == "trixie-a57 to bookworm-n1: 25 swapped, 17 left out"
        assert dialog.locator(".verdict").count() >= 42
        assert "the guest's processor has no FEAT_TCR2" in dialog.inner_text()
        assert page.evaluate("document.querySelector('dialog').scrollWidth") <= size[0]
        page.keyboard.press("Escape")
        assert not dialog.is_visible()
        assert page.evaluate(label) == "trixie-a57 to bookworm-n1: 25 swapped, 17 left out"


@WIDTHS
def test_by_pointer(browser: Browser, page_file: Path, size: tuple[int, int]) -> None:
    with opened(browser, page_file, size) as page:
        page.locator(FIRST).click()
        assert page.locator("dialog").is_visible()
        assert "MIDR_EL1" in page.locator("dialog").inner_text()
        page.locator("dialog header button").click()
        assert not page.locator("dialog").is_visible()


def test_what_profiles_say_stays_text(browser: Browser, page_file: Path) -> None:
    with opened(browser, page_file, DESK) as page:
        assert page.evaluate("window.hacked") is None
        assert HOSTILE in page.locator(".hosts").inner_text()
        assert page.locator("img").count() == 0
        page.locator(FIRST).click()
        assert page.evaluate("window.hacked") is None
