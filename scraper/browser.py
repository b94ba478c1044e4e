"""Opens pages in a real browser and returns their HTML, by Selenium only; pictures are not loaded (see `early.js`)."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

import urllib3
from selenium import webdriver
from selenium.common import exceptions
from selenium.common.exceptions import UnexpectedAlertPresentException, WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.command import Command

from scraper.addresses import is_loopback
from scraper.closing import CrawlStopped
from scraper.download import Downloader
from scraper.loading import LoadedPage, Loading
from scraper.politeness import Busy, Failed
from scraper.settling import Settling
from scraper.site import Site
from scraper.traffic import Traffic

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ATTEMPTS = 2  # a page that crashes two fresh browsers is left alone
MAX_ALERTS = 5  # boxes that one page may open while it is read
TAB_MEGABYTES = 512  # what a page's scripts may keep: one that leaks memory loses its tab, not the machine
SOCKET = "/org.chromium.Chromium.XXXXXX/SingletonSocket"  # what Chromium puts into the temporary folder
LONGEST_SOCKET_PATH = 107  # bytes: a limit of the kernel's
EARLY = (Path(__file__).parent / "early.js").read_text(encoding="utf-8")
DRIVER_ERRORS = (WebDriverException, urllib3.exceptions.HTTPError, OSError)
# commands that always have an answer; our scripts, too, return something each
ANSWERED = (
    Command.FIND_ELEMENTS,
    Command.GET_CURRENT_URL,
    Command.GET_PAGE_SOURCE,
    "executeCdpCommand",
    Command.W3C_EXECUTE_SCRIPT,
)


class BrowserError(CrawlStopped):
    """No browser can be started."""


class Browser(AbstractContextManager):
    """A headless Chromium that starts with its first page and is gone when the context is left, however that happens.

    Each thing that makes the site work, a page, a scroll, a click, is done when `downloader` permits it.
    """

    def __init__(self, site: Site, downloader: Downloader, headed: bool = False, remote_url: str | None = None):
        self.site, self.downloader, self.headed, self.remote_url = site, downloader, headed, remote_url
        self.driver: webdriver.Remote | None = None
        self.traffic: Traffic | None = None
        self._shown = ""  # the address of the document that the browser shows
        self.guard: subprocess.Popen | None = None  # in the process group of a local browser and all its helpers
        self._pages = 0
        self._is_given_up = False

    def __exit__(self, *_) -> None:
        self.quit()

    def load(self, url: str, max_listings: int | None = None) -> Iterator[LoadedPage | Failed]:
        """Yield the pages of one start entry, each with everything loaded, as the site's `[paging]` says.

        A `max_listings` ends the loading early. Raises as `open` does, for numbered pages when the first cannot be had,
        or two in a row; of another one the error is yielded.
        """
        paging, page = self.site.paging, None
        if paging.kind == "numbered":
            for number in range(paging.first, paging.first + paging.max_pages * paging.step, paging.step):
                try:
                    page = self.open(url.replace("{page}", str(number)), is_detail=False, most=max_listings)
                except Failed as error:
                    failed = Failed(f"{error} (page {number})")
                    if not isinstance(page, LoadedPage):
                        raise failed from error
                    page = failed
                yield page
            return
        asked = set()
        while url and url not in asked and len(asked) < paging.max_pages:
            asked.add(url)
            page = self.open(url, is_detail=False, most=max_listings)
            yield page
            url = page.following

    def open(self, url: str, is_detail: bool = True, hurry: bool = False, most: int | None = None) -> LoadedPage:
        """Open one page: a listing's own, or one of a search; in a `hurry` as it first shows.

        Loading ends at about `most` listings. Raises Refused, Failed, and BrowserError when no browser starts.
        """
        crashes = itertools.count(1)

        def ask() -> LoadedPage:
            while True:
                try:
                    if self.driver is None or self._pages >= self.site.politeness.restart_browser_every:
                        self.quit()
                        self._start()
                    self._pages += 1
                    with self.downloader.permit(url), suppress(UnexpectedAlertPresentException):
                        self._go(url)
                    return self._read(Settling(self, url, most, is_detail), hurry)
                except DRIVER_ERRORS as error:
                    # whatever it was, the next attempt and the next page get a fresh browser
                    self.quit(at_once=True)
                    if self._is_given_up:
                        raise BrowserError("the crawl is at its end") from error
                    if next(crashes) == ATTEMPTS:
                        raise Failed(_describe(error)) from error

        return self.downloader.pacer.persist(ask)

    def _go(self, url: str) -> None:
        """Load `url`, also where only its fragment differs from what is shown: the page then starts afresh."""
        document, fragment = urldefrag(url)
        if fragment and document == self._shown:
            self.driver.get("about:blank")
        self._shown = document
        self.traffic.leave()
        try:
            self.driver.get(url)
        except WebDriverException as error:
            if found := re.search(r"net::ERR_(\w+)", str(error)):
                raise Busy(f"no answer: {found[1].replace('_', ' ').lower()}", url) from error
            raise

    def _read(self, page: Settling, hurry: bool) -> LoadedPage:
        """Walk through the page and take its HTML, whatever alert boxes come in between."""
        loading = Loading(page, hurry)
        for left in itertools.count(MAX_ALERTS, -1):
            try:
                return loading.read()
            except UnexpectedAlertPresentException:
                if not left:
                    raise
                with suppress(exceptions.NoAlertPresentException):  # the driver has dismissed it already, as a rule
                    self.driver.switch_to.alert.dismiss()

    def _start(self) -> None:
        self._pages = 0
        if self._is_given_up:
            raise BrowserError("the crawl is at its end")
        try:
            if self.remote_url:
                self.driver = _RemoteBrowser(self.remote_url, options=self._options())
            else:
                self.driver = self._start_local()
        except BaseException as error:
            self.quit(at_once=True)
            if not isinstance(error, DRIVER_ERRORS):
                raise
            if self.remote_url:
                raise BrowserError(f"no browser at {self.remote_url} ({_describe(error)}); is it running?") from error
            raise BrowserError(
                f"no browser could be started ({_describe(error)}); install Chromium and chromedriver "
                "(Debian: apt install chromium chromium-driver), or give --remote-url"
            ) from error
        self._shown, self.traffic = "", Traffic(self.driver)
        self._devtools("Page.addScriptToEvaluateOnNewDocument", {"source": EARLY})
        if self.site.request.headers:
            self._devtools("Network.enable", {})
            self._devtools("Network.setExtraHTTPHeaders", {"headers": self.site.request.headers})
        for start in self.site.starts:
            for name, value in self.site.request.cookies.items():
                self._devtools("Network.setCookie", {"name": name, "value": value, "url": urljoin(start.url, "/")})
        page_timeout = self.site.politeness.page_timeout
        self.driver.set_page_load_timeout(page_timeout)
        self.driver.set_script_timeout(page_timeout)
        # a browser whose page hangs may leave its driver without an answer
        self.driver.command_executor.client_config.timeout = page_timeout + 30

    def _start_local(self) -> webdriver.Chrome:
        """Start a browser of this machine: the system's where there is one, else the one that Selenium fetches."""
        folder, most = tempfile.gettempdir(), LONGEST_SOCKET_PATH - len(SOCKET)
        if len(os.fsencode(folder)) > most:  # Chromium would end at once without saying why
            raise BrowserError(
                f"the temporary folder {folder} has too long a path for the browser's socket: "
                f"{len(os.fsencode(folder))} bytes, and {most} are the most; set the variable TMPDIR to a shorter one, "
                "as TMPDIR=/tmp"
            )
        self._profile = tempfile.mkdtemp(prefix="scraper-browser-")
        guard = ["/bin/sh", "-c", GUARD, "guard", self._profile]
        self.guard = subprocess.Popen(guard, stdin=subprocess.PIPE, process_group=0)
        options = self._options()
        options.add_argument(f"--user-data-dir={self._profile}")
        chromium = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
        driver = shutil.which("chromedriver")
        if chromium and driver:
            os.environ.setdefault("SE_OFFLINE", "true")
            os.environ.setdefault("SE_AVOID_STATS", "true")
            options.binary_location = chromium
        # in the guard's process group from birth; out of ours, so that Ctrl-C reaches us alone
        service = Service(driver if chromium else None, popen_kw={"process_group": self.guard.pid})
        return _LocalBrowser(options, service)

    def _devtools(self, command: str, parameters: dict) -> None:
        self.driver.execute("executeCdpCommand", {"cmd": command, "params": parameters})

    def _options(self) -> webdriver.ChromeOptions:
        options = webdriver.ChromeOptions()
        options.page_load_strategy = "eager"
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        options.add_experimental_option("perfLoggingPrefs", {"enableNetwork": True, "enablePage": False})
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.images": 2})
        # with a certificate of one's own, robots.txt is read first, by a client that knows it
        options.accept_insecure_certs = not self.site.request.verify or self.site.request.ca_file is not None
        options.unhandled_prompt_behavior = "dismiss"  # an alert box must not stop a crawl
        flags = ["--disable-dev-shm-usage", "--disable-background-networking", "--window-size=1920,1600"]
        flags += [f"--user-agent={self.site.user_agent}", f"--js-flags=--max-old-space-size={TAB_MEGABYTES}"]
        # as root Chromium starts only without its sandbox; who runs a browser elsewhere is not ours to know
        if os.geteuid() == 0 and is_loopback(urlsplit(self.remote_url or "http://localhost").hostname):
            flags.append("--no-sandbox")
        if not self.headed:
            flags.append("--headless=new")
        for flag in flags:
            options.add_argument(flag)
        return options

    def quit(self, at_once: bool = False) -> None:
        """End the browser and all its processes, `at_once` when it no longer answers. May be called twice."""
        driver, guard = self.driver, self.guard
        self.driver = self.guard = None
        try:
            if at_once and guard is not None:
                guard.communicate(b"\n")
            if driver is not None:
                driver.quit()
        except DRIVER_ERRORS:
            pass  # it crashed or hangs: the guard ends it
        finally:
            if guard is not None:
                if guard.returncode is None:
                    guard.communicate(b"\n")
                shutil.rmtree(self._profile, ignore_errors=True)

    def give_up(self) -> None:
        """End the browser under the hands of the thread that uses it, which gets a Failed or BrowserError."""
        self._is_given_up = True
        guard = self.guard
        if guard is not None and guard.poll() is None:
            with suppress(ProcessLookupError):  # it ended in this moment
                os.killpg(guard.pid, signal.SIGKILL)


class _HearsAlerts:
    """A driver that knows when an alert box cut an answer off: chromedriver then answers with nothing."""

    def execute(self, driver_command: str, params: dict | None = None) -> dict:
        answer = super().execute(driver_command, params)
        if driver_command in ANSWERED and answer["value"] is None:
            raise UnexpectedAlertPresentException("the browser did not answer: an alert box opened meanwhile")
        return answer


class _LocalBrowser(_HearsAlerts, webdriver.Chrome):
    pass


class _RemoteBrowser(_HearsAlerts, webdriver.Remote):
    pass


# A scraper killed by SIGKILL can run no code. This shell then sees its input end; it ends all processes of its group,
# which are the browser's, and removes the browser's profile. A line on its input does the same at once.
GUARD = """
if read -r _; then kill -KILL 0; fi
trap '' TERM
kill -TERM 0
for second in 1 2 3 4 5 6 7 8 9 10; do
  sleep 1
  if rm -rf "$1"; then break; fi  # not while the browser, on its way out, still writes into it
done
kill -KILL 0
"""


def _describe(error: Exception) -> str:
    if isinstance(error, exceptions.TimeoutException | urllib3.exceptions.TimeoutError):
        return "the page hung"
    first = (getattr(error, "msg", None) or str(error)).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {first[0][:200]}"
