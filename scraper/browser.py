"""Opens pages in a real browser until everything on them is loaded, and gives back their HTML. Selenium only.

Pictures are not loaded: the downloader fetches each photo once. Their lazy attributes stay in the HTML, which is all
that is needed. Linux and macOS; elsewhere a remote browser (`--remote-url`) does.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import urllib3
from selenium import webdriver
from selenium.common.exceptions import (
    NoAlertPresentException,
    NoSuchDriverException,
    TimeoutException,
    UnexpectedAlertPresentException,
    WebDriverException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.command import Command
from selenium.webdriver.support.ui import WebDriverWait

from scraper.site import Site

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ATTEMPTS = 2  # a page that crashes two fresh browsers is left alone
MAX_ALERTS = 5  # boxes that one page may open while it is read
POLL = 0.05  # seconds
TAB_MEGABYTES = 512  # what a page's scripts may keep
SOCKET = "/org.chromium.Chromium.XXXXXX/SingletonSocket"  # what Chromium puts into the temporary folder
LONGEST_SOCKET_PATH = 107  # bytes: a limit of the kernel's
# commands that always have an answer; our scripts, too, return something each
ANSWERED = (
    Command.FIND_ELEMENTS,
    Command.GET_CURRENT_URL,
    Command.GET_PAGE_SOURCE,
    Command.GET_ALL_COOKIES,
    Command.IS_ELEMENT_ENABLED,
    Command.W3C_EXECUTE_SCRIPT,
)

# distinct listings: a "load more" that repeats its last page adds elements but no listing
COUNT_LISTINGS = """
const [selector, attribute] = arguments;
const own = card => attribute && card.getAttribute(attribute);
const key = card => own(card) || card.querySelector("a[href]")?.href || card.innerText;
return new Set(Array.from(document.querySelectorAll(selector), key)).size;
"""
HTTP_STATUS = "return performance.getEntriesByType('navigation')[0]?.responseStatus ?? 0;"
NEXT_PAGE = "return document.querySelector(arguments[0])?.href || '';"
SCROLL_DOWN = "window.scrollTo(0, document.scrollingElement.scrollHeight); return true;"
# clicked by script: a banner over the button does not matter
CLICK = "arguments[0].scrollIntoView(); arguments[0].click(); return true;"
# some loaders watch for movement: a step back up before the end is reached again
SCROLL_AGAIN = "window.scrollBy(0, -window.innerHeight);" + SCROLL_DOWN


class BrowserError(Exception):
    """No browser can be started; the text says how to get one."""


class PageFailed(Exception):
    """A page could not be opened: it hung, crashed or did not answer."""


@dataclass(frozen=True)
class LoadedPage:
    """A page as the browser shows it in the end, why loading stopped there, and the session's cookies."""

    url: str
    html: str
    stopped_by: str  # "end marker" · "nothing new" · "bound" · "single page"
    cookies: list[dict]
    asked: str = ""  # the address that led there
    http_status: int | None = None  # None where the browser does not tell


class Browser:
    """A headless Chromium that is gone when the context is left, however that happens.

    Each thing that makes the site work, a page, a scroll, a click, is done within the context that `permit(url)`
    gives. It waits as politeness asks, and raises what it likes to forbid it. Raises BrowserError when no browser
    starts.
    """

    def __init__(
        self,
        site: Site,
        permit: Callable[[str], AbstractContextManager] = lambda url: nullcontext(),
        headed: bool = False,
        remote_url: str | None = None,
    ):
        self.site, self.permit, self.headed, self.remote_url = site, permit, headed, remote_url
        self._driver: webdriver.Remote | None = None
        self._guard: subprocess.Popen | None = None
        self._pages = 0
        self._is_given_up = False

    @property
    def process_group(self) -> int | None:
        """The process group of a local browser and all its helpers; None when there is none."""
        return self._guard.pid if self._guard else None

    def __enter__(self) -> Browser:
        self._start()
        return self

    def __exit__(self, *_) -> None:
        self.quit()

    def load(self, url: str, max_listings: int | None = None) -> Iterator[LoadedPage]:
        """Yield the pages of one start entry, each with everything loaded, as the site's `[paging]` says.

        A `max_listings` ends the loading early. Raises PageFailed.
        """
        paging = self.site.paging
        most = min(max_listings or paging.max_listings, paging.max_listings)
        if paging.kind == "numbered":
            for number in range(paging.first_page, paging.first_page + paging.max_pages):
                yield self._open(url.replace("{page}", str(number)), lambda: "single page")
        elif paging.kind == "next":
            address = url
            following = ""

            def note_the_next() -> str:
                nonlocal following
                following = self._driver.execute_script(NEXT_PAGE, paging.next)
                return "single page"

            for _ in range(paging.max_pages):
                yield self._open(address, note_the_next)
                if not following or following == address:
                    return
                address = following
        else:
            yield self._open(url, lambda: self._load_all(most))

    def open(self, url: str) -> LoadedPage:
        """Open one page, such as a listing's own. Raises PageFailed."""
        return self._open(url, lambda: "single page", ready=self.site.detail.photos if self.site.detail else None)

    def _open(self, url: str, expand: Callable[[], str], ready: str | None = None) -> LoadedPage:
        for attempt in range(ATTEMPTS):
            if self._driver is None or self._pages >= self.site.politeness.restart_browser_every:
                self.quit()
                self._start()
            self._pages += 1
            try:
                with self.permit(url), suppress(UnexpectedAlertPresentException):
                    self._driver.get(url)
                return self._read(url, expand, ready or self.site.selectors.listing)
            except (WebDriverException, urllib3.exceptions.HTTPError, OSError) as error:
                # whatever it was, the next attempt and the next page get a fresh browser
                self.quit(at_once=True)
                if self._is_given_up:
                    raise BrowserError("the crawl is at its end") from error
                if attempt + 1 == ATTEMPTS:
                    raise PageFailed(_describe(error)) from error

    def _read(self, url: str, expand: Callable[[], str], ready: str) -> LoadedPage:
        """Wait for what `ready` selects, expand the page and take its HTML, whatever alert boxes come in between."""
        for left in itertools.count(MAX_ALERTS, -1):
            try:
                self._wait_for(ready)
                stopped_by = expand()
                found = self._driver.current_url, self._driver.page_source
                return LoadedPage(*found, stopped_by, self._driver.get_cookies(), url, self._http_status())
            except UnexpectedAlertPresentException:
                if not left:
                    raise
                with suppress(NoAlertPresentException):  # the driver has dismissed it already, as a rule
                    self._driver.switch_to.alert.dismiss()

    def _http_status(self) -> int | None:
        return self._driver.execute_script(HTTP_STATUS) or None

    def _wait_for(self, selector: str) -> None:
        """Wait until the first listing or a marker is there; a page that shows neither in time is taken as it is."""
        wanted = ", ".join(filter(None, (selector, self.site.paging.empty, self.site.paging.end)))
        try:
            self._until(lambda: self._find(wanted), self.site.paging.patience)
        except TimeoutException:
            self._driver.current_url  # noqa: B018 (raises if it is the browser that does not answer)

    def _load_all(self, most: int) -> str:
        """Scroll or click until the end marker shows, nothing new comes or a bound is reached, and tell which."""
        paging = self.site.paging
        for _ in range(paging.max_pages):
            count = self._count()
            if paging.kind == "none":
                return "single page"
            if self._at_end():
                return "end marker"
            if count >= most:
                return "bound"
            if not self._advance(count):
                return "end marker" if self._at_end() else "nothing new"
        return "bound"

    def _advance(self, count: int) -> bool:
        """Ask for more and tell whether more listings came than `count`."""
        paging = self.site.paging
        moves: tuple[tuple, ...] = ((SCROLL_DOWN,), (SCROLL_AGAIN,))
        if paging.kind == "button":
            buttons = [button for button in self._find(paging.button) if button.is_displayed() and button.is_enabled()]
            if not buttons:
                return False
            moves = ((CLICK, buttons[0]),)
        for number, move in enumerate(moves):
            with nullcontext() if number else self.permit(self._driver.current_url):
                self._driver.execute_script(*move)
            try:
                self._until(lambda: self._count() > count or self._at_end(), paging.patience / len(moves))
                return self._count() > count
            except TimeoutException:
                continue
        return False

    def _count(self) -> int:
        css, _, attribute = (self.site.selectors.id or "").partition("@")
        own = attribute if not css.strip() else None
        return self._driver.execute_script(COUNT_LISTINGS, self.site.selectors.listing, own)

    def _at_end(self) -> bool:
        return bool(self.site.paging.end and self._find(self.site.paging.end))

    def _find(self, selector: str) -> list:
        return self._driver.find_elements(By.CSS_SELECTOR, selector)

    def _until(self, condition: Callable[[], object], seconds: float) -> None:
        WebDriverWait(self._driver, seconds, poll_frequency=POLL).until(lambda _: condition())

    def _start(self) -> None:
        self._pages = 0
        if self._is_given_up:
            raise BrowserError("the crawl is at its end")
        try:
            if self.remote_url:
                self._driver = _RemoteBrowser(self.remote_url, options=self._options())
            else:
                _check_temporary_folder()
                self._profile = tempfile.mkdtemp(prefix="scraper-browser-")
                self._guard = _stand_guard(self._profile)
                self._driver = _LocalBrowser(*self._local())
        except (WebDriverException, urllib3.exceptions.HTTPError, OSError) as error:
            self.quit(at_once=True)
            if self.remote_url:
                raise BrowserError(f"no browser at {self.remote_url} ({_describe(error)}); is it running?") from error
            raise BrowserError(
                f"no browser could be started ({_describe(error)}); install Chromium and chromedriver "
                "(Debian: apt install chromium chromium-driver), or give --remote-url"
            ) from error
        except BaseException:
            self.quit(at_once=True)
            raise
        page_timeout = self.site.politeness.page_timeout
        self._driver.set_page_load_timeout(page_timeout)
        self._driver.set_script_timeout(page_timeout)
        # a browser whose page hangs may leave its driver without an answer
        self._driver.command_executor.client_config.timeout = page_timeout + 30

    def _options(self) -> webdriver.ChromeOptions:
        options = webdriver.ChromeOptions()
        options.page_load_strategy = "eager"
        options.unhandled_prompt_behavior = "dismiss"  # an alert box must not stop a crawl
        for flag in ("--disable-dev-shm-usage", "--disable-background-networking", "--window-size=1280,1600"):
            options.add_argument(flag)
        # a page that leaks memory loses its tab, not the machine
        options.add_argument(f"--js-flags=--max-old-space-size={TAB_MEGABYTES}")
        # as root Chromium starts only without its sandbox; who runs a browser elsewhere is not ours to know
        if os.geteuid() == 0 and urlsplit(self.remote_url or "http://localhost").hostname in LOOPBACK:
            options.add_argument("--no-sandbox")
        if not self.headed:
            options.add_argument("--headless=new")
        options.add_argument(f"--user-agent={self.site.user_agent}")
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.images": 2})
        return options

    def _local(self) -> tuple[webdriver.ChromeOptions, Service]:
        """Options and service of a browser on this machine: the system's where there is one, else Selenium's."""
        options = self._options()
        options.add_argument(f"--user-data-dir={self._profile}")
        chromium = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
        driver = shutil.which("chromedriver")
        if chromium and driver:
            os.environ.setdefault("SE_OFFLINE", "true")
            os.environ.setdefault("SE_AVOID_STATS", "true")
            options.binary_location = chromium
        # in the guard's process group from birth; out of ours, so that Ctrl-C reaches us alone
        service = Service(driver if chromium else None, popen_kw={"process_group": self._guard.pid})
        return options, service

    def quit(self, at_once: bool = False) -> None:
        """End the browser and all its processes, `at_once` when it no longer answers. May be called twice."""
        driver, guard = self._driver, self._guard
        self._driver = self._guard = None
        try:
            if at_once and guard is not None:
                guard.communicate(b"\n")
            if driver is not None:
                driver.quit()
        except (WebDriverException, urllib3.exceptions.HTTPError, OSError):
            pass  # it crashed or hangs: the guard ends it
        finally:
            if guard is not None:
                if guard.returncode is None:
                    guard.communicate(b"\n")
                shutil.rmtree(self._profile, ignore_errors=True)

    def give_up(self) -> None:
        """End the browser under the hands of the thread that uses it, which gets a PageFailed or BrowserError."""
        self._is_given_up = True
        guard = self._guard
        if guard is not None and guard.poll() is None:
            with suppress(ProcessLookupError):  # it ended in this moment
                os.killpg(guard.pid, signal.SIGKILL)


class _Silence:
    """Takes silence for the alert box that it is: what one cuts off by opening, chromedriver answers with nothing."""

    def execute(self, driver_command: str, params: dict | None = None) -> dict:
        answer = super().execute(driver_command, params)
        if driver_command in ANSWERED and answer["value"] is None:
            raise UnexpectedAlertPresentException("the browser did not answer: an alert box opened meanwhile")
        return answer


class _LocalBrowser(_Silence, webdriver.Chrome):
    pass


class _RemoteBrowser(_Silence, webdriver.Remote):
    pass


# A scraper killed by SIGKILL can run no code. This shell then sees its input end; it ends all processes of its group,
# which are the browser's, and removes the browser's profile. A line on its input does the same at once.
GUARD = """
if read -r _; then kill -KILL 0; fi
trap '' TERM
kill -TERM 0
sleep 1
rm -rf "$1"
kill -KILL 0
"""


def _stand_guard(profile: str) -> subprocess.Popen:
    return subprocess.Popen(["/bin/sh", "-c", GUARD, "guard", profile], stdin=subprocess.PIPE, process_group=0)


def _check_temporary_folder() -> None:
    """Raises BrowserError where Chromium would end at once without saying why."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder + SOCKET)) > LONGEST_SOCKET_PATH:
        most = LONGEST_SOCKET_PATH - len(SOCKET)
        raise BrowserError(
            f"the temporary folder {folder} has too long a path for the browser's socket: {len(os.fsencode(folder))} "
            f"bytes, and {most} are the most; set the variable TMPDIR to a shorter one, as TMPDIR=/tmp"
        )


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutException | urllib3.exceptions.TimeoutError):
        return "the page hung"
    if isinstance(error, NoSuchDriverException):
        return "no driver found"
    first = (getattr(error, "msg", None) or str(error)).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {first[0][:200]}"
