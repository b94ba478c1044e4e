"""How often a host may be asked, and what its robots.txt allows."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from protego import Protego
from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

from scraper.site import ROBOT_NAME, Politeness

ROBOTS_LIMIT = 500 * 1024  # bytes; RFC 9309 asks for at least this much to be parsed
ROBOTS_LIFETIME = 24 * 3600.0  # seconds; RFC 9309, 2.4
LONGEST_WAIT = 300.0  # seconds; a host that asks for more is left alone in this run
LONGEST_SLOWDOWN = 60.0
LONGEST_TURN = 5.0  # seconds
NO_TIME = 0.001  # seconds; what rounding may leave of a wait
POLL = 0.02  # seconds
BUSY = {408, 425, 429, *range(500, 600)} - {501, 505}  # statuses after which the same request may succeed
ROBOTS_FORBID = "robots.txt forbids it"
AI_REFUSALS = {"noai", "noimageai", "noindex", "noimageindex", "none"}


class Refused(Exception):
    """A URL's final outcome: asking again would not help, or is not allowed.

    `settings` name what led to it, a key of `[politeness]`, "request" or "formats": under others it is judged again.
    """

    def __init__(self, reason: str, *settings: str):
        super().__init__(reason)
        self.settings = settings


class Failed(Exception):
    """A URL could not be had now; a later run tries again."""


class Busy(Exception):
    """`url` did not answer well, but may do so later: after `seconds` if its host said when."""

    def __init__(self, reason: str, url: str, seconds: float | None = None):
        super().__init__(reason)
        self.url, self.seconds = url, seconds


class Stopped(Exception):
    """The crawl is at its end: nothing may be asked any more."""


@dataclass
class _Host:
    next_time: float = 0.0
    crawl_delay: float = 0.0
    slowdown: float = 0.0  # seconds on top, after 429 and server errors
    usual_latency: float | None = None
    latency: float = 0.0
    held_until: float = 0.0  # by somebody's turn


class Pacer:
    """Keeps the requests to one host apart: the site file's delay or robots.txt's, whichever is longer, with jitter.

    The delay grows with the host's latency, against the quickest it has shown, up to tenfold; it doubles from one
    second upwards at each sign of overload and shrinks again with each good answer. All times are in seconds. Any
    number of threads may ask; a host sees them one after the other.
    """

    def __init__(
        self,
        politeness: Politeness,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ):
        self._stopping = threading.Event()
        self.politeness, self.sleep, self.clock = politeness, sleep or self._stopping.wait, clock
        self.rng = rng or random.Random()
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.RLock()

    def _host(self, url: str) -> _Host:
        return self._hosts.setdefault(urlsplit(url).netloc.lower(), _Host())

    def delay(self, url: str) -> float:
        """Return the seconds that now lie between two requests to the host of `url`, before jitter."""
        host = self._host(url)
        base = max(self.politeness.delay, host.crawl_delay)
        strain = min(10.0, max(1.0, host.latency / host.usual_latency)) if host.usual_latency else 1.0
        return base * strain + host.slowdown

    def wait(self, url: str, hold: float = 0.0) -> None:
        """Wait until the host of `url` may be asked again, and keep it for ourselves for `hold` seconds.

        Raises Failed if it asked for a longer rest than we wait.
        """
        host = self._host(url)
        while True:
            self.check()
            with self._lock:
                rest = max(host.next_time - self.clock(), POLL if host.held_until > self.clock() else 0.0)
                if rest > LONGEST_WAIT:
                    raise Failed(f"host asked us to wait: {rest:.0f} s more")
                if rest < NO_TIME:
                    host.held_until = self.clock() + hold
                    self._space(host, url)
                    return
            self.sleep(rest)

    @contextmanager
    def turn(self, url: str) -> Iterator[None]:
        """Wait as `wait` does, and let nobody else ask the host while the context lasts.

        A browser asks a moment after it was told to; the delay counts from when it has its answer. A turn ends after
        five seconds at the latest: by then a page that hangs has been asked for.
        """
        self.wait(url, hold=LONGEST_TURN)
        try:
            yield
        finally:
            with self._lock:
                host = self._host(url)
                host.held_until = 0.0
                self._space(host, url)

    def persist(self, ask: Callable[[], object]) -> object:
        """Return what `ask()` returns; where it raises Busy, ask again after a rest. Raises Failed in the end."""
        for attempt in itertools.count():
            try:
                return ask()
            except Busy as busy:
                self.rest(busy, attempt)

    def rest(self, busy: Busy, attempt: int) -> None:
        """Let a host rest as long as it asked for, or longer with each `attempt` (counted from 0), and slow down.

        Raises Failed where it is not worth another attempt in this run.
        """
        self.check()
        with self._lock:
            host = self._host(busy.url)
            host.slowdown = min(LONGEST_SLOWDOWN, max(1.0, 2 * host.slowdown))
            backoff = min(60.0, 2.0**attempt) * (1 + self.rng.uniform(0, 0.5))
            rest = max(backoff if busy.seconds is None else busy.seconds, self.delay(busy.url))
            host.next_time = max(host.next_time, self.clock() + rest)
        if attempt + 1 >= self.politeness.attempts or (busy.seconds or 0) > LONGEST_WAIT:
            raise Failed(str(busy)) from busy

    def check(self) -> None:
        """Raises Stopped after `stop`."""
        if self._stopping.is_set():
            raise Stopped

    def stop(self) -> None:
        """Let every wait, under way or to come, raise Stopped."""
        self._stopping.set()

    def _space(self, host: _Host, url: str) -> None:
        pause = self.delay(url) * (1 + self.rng.uniform(0, self.politeness.jitter))
        host.next_time = max(host.next_time, self.clock() + pause)

    def set_crawl_delay(self, url: str, seconds: float) -> None:
        """Never ask the host of `url` more often than its robots.txt says."""
        with self._lock:
            host = self._host(url)
            host.crawl_delay = seconds
            host.next_time = max(host.next_time, self.clock() + seconds)

    def answered(self, url: str, latency: float) -> None:
        """Note a good answer that began after `latency` seconds."""
        with self._lock:
            host = self._host(url)
            host.latency = latency if host.usual_latency is None else 0.7 * host.latency + 0.3 * latency
            host.usual_latency = max(0.1, min(host.usual_latency or latency, latency))
            host.slowdown = host.slowdown * 0.8 if host.slowdown > 0.05 else 0.0
            self._space(host, url)


def parse_retry_after(text: str) -> float | None:
    """Return the seconds of a `Retry-After`, written as seconds or as a date; None when it says nothing."""
    try:
        return float(Retry().parse_retry_after(text))
    except InvalidHeader:
        return None


def forbidding_word(text: str) -> str | None:
    """Return the word of a `robots` tag that keeps photos out of data sets, or None."""
    return min({word.strip().lower() for word in text.split(",")} & AI_REFUSALS, default=None)


def forbidding_header(values: Iterable[str]) -> str | None:
    """Return the word of the `X-Robots-Tag`s that keeps photos out of data sets; other robots' are skipped."""
    for value in values:
        robot, colon, rest = value.partition(":")
        named = colon and "," not in robot and robot.strip().lower() != "unavailable_after"
        if named and robot.strip().lower() != ROBOT_NAME.lower():
            continue
        if word := forbidding_word(rest if named else value):
            return word
    return None


class Robots:
    """Each host's robots.txt by RFC 9309, closed on doubt.

    A 2xx answer is parsed (its first 500 KiB), a 4xx allows everything, and 429, 5xx, network errors and redirects
    that lead nowhere forbid everything. `fetch(url, limit)` returns (status, content) and raises Failed or Refused.
    """

    def __init__(self, fetch: Callable[[str, int], tuple[int, bytes]], pacer: Pacer):
        self.fetch, self.pacer = fetch, pacer
        # origin -> when it was read, and its rules, or in words why there are none
        self._rules: dict[str, tuple[float, Protego | str]] = {}
        self._reading: dict[str, threading.Lock] = {}

    def check(self, url: str) -> None:
        """Return if `url` may be fetched. Raises Refused if robots.txt forbids it, Failed if that cannot be read."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}".lower()
        with self._reading.setdefault(origin, threading.Lock()):  # several threads ask for it once
            if origin not in self._rules or self.pacer.clock() - self._rules[origin][0] > ROBOTS_LIFETIME:
                self._rules[origin] = self.pacer.clock(), self._read(origin)
        _, rules = self._rules[origin]
        if isinstance(rules, str):
            raise Failed(f"robots.txt cannot be read: {rules}")
        if not rules.can_fetch(url, ROBOT_NAME):
            raise Refused(ROBOTS_FORBID)

    def _read(self, origin: str) -> Protego | str:
        try:
            status, content = self.fetch(f"{origin}/robots.txt", ROBOTS_LIMIT)
        except (Failed, Refused) as error:
            return str(error)
        if 400 <= status < 500 and status != 429:
            return Protego.parse("")
        if not 200 <= status < 300:
            return f"status {status}"
        if len(content) >= ROBOTS_LIMIT:
            content = content[: content.rfind(b"\n") + 1]
        rules = Protego.parse(content.decode("utf-8-sig", errors="replace"))
        rate = rules.request_rate(ROBOT_NAME)
        by_rate = rate.seconds / rate.requests if rate and rate.requests else 0.0
        if delay := max(rules.crawl_delay(ROBOT_NAME) or 0.0, by_rate):
            self.pacer.set_crawl_delay(origin, delay)
        return rules
