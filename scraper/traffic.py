"""What a page asks for while it is open, from the browser's own log of its requests."""

import json
import time
from urllib.parse import urldefrag, urlsplit

from selenium.webdriver.remote.webdriver import WebDriver

from scraper.politeness import BUSY, Busy, Failed, forbidding_header, parse_retry_after

LONGEST_REQUEST = 15.0  # seconds after which a script's request counts as one that never ends
BY_SCRIPT = ("XHR", "Fetch")


class Traffic:
    """The requests of one browser's pages."""

    def __init__(self, driver: WebDriver):
        self._driver = driver
        self._pending: dict[str, tuple[float, str]] = {}  # a request's number -> when it began, its address
        self._streams: dict[str, tuple[float, str]] = {}  # the same of what brings one thing after the other
        self._started = 0
        self._retry_after: dict[str, float | None] = {}
        self._refused_to_us: dict[str, str | None] = {}  # a page's address -> the word of its X-Robots-Tag
        self._refusals: list[tuple[str, int, float | None]] = []  # address, status or 0 for no answer, Retry-After

    def started(self) -> int:
        """Return how many requests of scripts were made so far."""
        self._read()
        return self._started

    def are_pending(self, page_url: str, since: float = 0.0) -> bool:
        """Tell whether a script, or the data that one asked for, is still on its way to a page.

        Only what began after `since`, as time.monotonic() tells, counts. A stream does if it comes from the page's own
        site: another's is a chat window, or counts visitors.
        """
        self._read()
        ours = (stream for stream in self._streams.values() if _site_of(stream[1]) == _site_of(page_url))
        since = max(since, time.monotonic() - LONGEST_REQUEST)
        return any(began > since for began, _ in (*self._pending.values(), *ours))

    def leave(self) -> None:
        """Wait no more for what the page that is shown now asked for: another is opened."""
        self._read()
        self._pending.clear()
        self._streams.clear()

    def retry_after(self, url: str) -> float | None:
        """Return the seconds that the answer from `url` asked us to wait, None when it did not."""
        self._read()
        return self._retry_after.get(urldefrag(url).url)

    def forbidding_word(self, url: str) -> str | None:
        """Return the word of the answer's X-Robots-Tag that keeps photos of the page at `url` out of data sets."""
        self._read()
        return self._refused_to_us.get(urldefrag(url).url)

    def take_refusal(self, page_url: str, since: float) -> Busy | Failed | None:
        """Return the error that a script of a page got last from the page's site since this was asked; None without.

        A request made after `since`, as time.monotonic() tells, that still has no answer is one, too.
        """
        self._read()
        unanswered = [(url, None, None) for began, url in self._pending.values() if began > since]
        ours = [found for found in (*unanswered, *self._refusals) if _site_of(found[0]) == _site_of(page_url)]
        self._refusals.clear()
        if not ours:
            return None
        _, status, seconds = ours[-1]
        said = f"a script's request was {f'answered with status {status}' if status else 'not answered'}"
        return Busy(said, page_url, seconds) if status in (0, *BUSY) else Failed(said)

    def _read(self) -> None:
        """Take note of what the browser logged since the last time."""
        for entry in self._driver.execute("getLog", {"type": "performance"})["value"] or ():
            event = json.loads(entry["message"])["message"]
            method, what = event["method"], event["params"]
            kind = what.get("type")
            if method == "Network.requestWillBeSent" and kind in (*BY_SCRIPT, "Script", "EventSource"):
                began = time.monotonic() - (time.time() - what["wallTime"])
                asked = self._streams if kind == "EventSource" else self._pending
                asked[what["requestId"]] = began, what["request"]["url"]
                self._started += kind in BY_SCRIPT
            elif method == "Network.webSocketCreated":
                self._streams[what["requestId"]] = time.monotonic(), what["url"]
            elif method in ("Network.loadingFinished", "Network.webSocketClosed"):
                self._pending.pop(what["requestId"], None)
                self._streams.pop(what["requestId"], None)
            elif method == "Network.loadingFailed":
                self._streams.pop(what["requestId"], None)
                _, url = self._pending.pop(what["requestId"], (0.0, ""))
                if kind in BY_SCRIPT and not what.get("canceled"):
                    self._refusals.append((url, 0, None))
            elif method == "Network.responseReceived":
                self._note_answer(kind, what["response"])

    def _note_answer(self, kind: str | None, response: dict) -> None:
        url, status = urldefrag(response["url"]).url, response["status"]
        headers = {name.lower(): value for name, value in response["headers"].items()}
        seconds = parse_retry_after(headers.get("retry-after", ""))
        if kind == "Document":
            self._retry_after[url] = seconds
            self._refused_to_us[url] = forbidding_header(headers.get("x-robots-tag", "").split("\n"))
        elif kind in BY_SCRIPT and (status in BUSY or status == 403):
            self._refusals.append((url, status, seconds))
        elif kind in BY_SCRIPT and status < 400:  # asked again, it was answered
            self._refusals = [refusal for refusal in self._refusals if refusal[0] != url]


def _site_of(url: str) -> list[str]:
    """Return the last two names of a host: those of cars.example and api.cars.example are the same."""
    return (urlsplit(url).hostname or "").split(".")[-2:]
