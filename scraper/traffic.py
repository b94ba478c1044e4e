"""What a page asks for while it is open, from the browser's own log of its requests."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from urllib.parse import urldefrag, urlsplit

from selenium.common.exceptions import WebDriverException
from selenium.webdriver.remote.webdriver import WebDriver

from scraper.politeness import BUSY, parse_retry_after

LONGEST_REQUEST = 15.0  # seconds after which a script's request counts as one that never ends


@dataclass(frozen=True)
class Refusal:
    """An answer to a script that asks us to come later, in `seconds` if it said when, or that refuses."""

    url: str
    status: int
    seconds: float | None


class Traffic:
    """The requests of one browser's pages; none are known where the browser keeps no log."""

    def __init__(self, driver: WebDriver):
        self._driver = driver
        self._pending: dict[str, float] = {}  # a request's number -> when it was read of, as time.monotonic() tells
        self._started = 0
        self._is_logged = True
        self._retry_after: dict[str, float | None] = {}
        self._refusals: list[Refusal] = []

    def started(self) -> int:
        """Return how many requests of scripts were made so far; more at each call where the browser keeps no log."""
        self._read()
        self._started += not self._is_logged
        return self._started

    def are_pending(self) -> bool:
        """Tell whether a script or the data that one asked for is still on its way."""
        self._read()
        latest = time.monotonic() - LONGEST_REQUEST
        self._pending = {number: began for number, began in self._pending.items() if began > latest}
        return bool(self._pending)

    def retry_after(self, url: str) -> float | None:
        """Return the seconds that the answer from `url` asked us to wait, None when it did not."""
        self._read()
        return self._retry_after.get(urldefrag(url).url)

    def take_refusal(self, page_url: str) -> Refusal | None:
        """Return the newest refusal by the site of a page since this was asked last; other sites' do not count."""
        self._read()
        found = [refusal for refusal in self._refusals if _site_of(refusal.url) == _site_of(page_url)]
        self._refusals.clear()
        return found[-1] if found else None

    def _read(self) -> None:
        try:
            entries = self._driver.execute("getLog", {"type": "performance"})["value"] if self._is_logged else ()
        except (WebDriverException, KeyError):
            self._is_logged, entries = False, ()
        for entry in entries or ():
            event = json.loads(entry["message"])["message"]
            kind, what = event["method"], event["params"]
            if kind == "Network.requestWillBeSent" and what.get("type") in ("XHR", "Fetch", "Script"):
                self._pending[what["requestId"]] = time.monotonic()
                self._started += what["type"] != "Script"
            elif kind in ("Network.loadingFinished", "Network.loadingFailed"):
                self._pending.pop(what["requestId"], None)
            elif kind == "Network.responseReceived":
                url, status = urldefrag(what["response"]["url"]).url, what["response"]["status"]
                headers = {name.lower(): value for name, value in what["response"]["headers"].items()}
                seconds = parse_retry_after(headers.get("retry-after", ""))
                if what.get("type") == "Document":
                    self._retry_after[url] = seconds
                elif what.get("type") in ("XHR", "Fetch") and (status in BUSY or status == 403):
                    self._refusals.append(Refusal(url, status, seconds))


def _site_of(url: str) -> list[str]:
    """Return the last two names of a host: those of cars.example and api.cars.example are the same."""
    return (urlsplit(url).hostname or "").split(".")[-2:]
