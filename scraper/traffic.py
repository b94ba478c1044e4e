"""What a page asks for while it is open, from the browser's own log of its requests."""

from __future__ import annotations

import json
import time
from urllib.parse import urldefrag

from selenium.common.exceptions import WebDriverException
from selenium.webdriver.remote.webdriver import WebDriver

from scraper.politeness import parse_retry_after

LONGEST_REQUEST = 15.0  # seconds after which a script's request counts as one that never ends


class Traffic:
    """The requests of one browser's pages; none are known where the browser keeps no log."""

    def __init__(self, driver: WebDriver):
        self._driver = driver
        self._pending: dict[str, float] = {}  # a request's number -> when it was read of, as time.monotonic() tells
        self._started = 0
        self._is_logged = True
        self._retry_after: dict[str, str] = {}

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
        return parse_retry_after(self._retry_after.get(urldefrag(url).url, ""))

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
            elif kind == "Network.responseReceived" and what.get("type") == "Document":
                headers = {name.lower(): value for name, value in what["response"]["headers"].items()}
                self._retry_after[urldefrag(what["response"]["url"]).url] = headers.get("retry-after", "")
