"""Fetches one photo politely, and believes nothing that the server says about it."""

import contextlib
import hashlib
import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
import urllib3

from carspotter.photos.decoding import FORMATS, Limits, UnreadablePhoto, inspect
from scraper.addresses import absolute, is_loopback
from scraper.connection import Session
from scraper.politeness import BUSY, Busy, Failed, Pacer, Refused, Robots, forbidding_header, parse_retry_after
from scraper.site import Site

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Photo:
    """A fetched and verified photo: original bytes, SHA-256, file extension, pixel size before EXIF rotation."""

    content: bytes
    sha256: str
    extension: str
    width: int
    height: int
    final_url: str


class Downloader:
    """Fetches the photos of one site; each thread that uses it has a session and cookies of its own."""

    def __init__(self, site: Site, pacer: Pacer | None = None):
        self.site, self.politeness = site, site.politeness
        self.pacer = pacer or Pacer(site.politeness)
        self.robots = Robots(self._get_robots, self.pacer)
        self._private = [ipaddress.ip_network(text) for text in site.politeness.allow_private]
        self._public_hosts: set[tuple[str, int]] = set()
        self._answered: set[str] = set()  # hosts
        self._proxies: dict[str, dict] = {}
        self._own = threading.local()
        self._sessions: list[Session] = []
        self._cookies: list[dict] = []  # the newest, with which a thread's session begins

    @property
    def _session(self) -> Session:
        if not hasattr(self._own, "session"):
            self._own.session = Session(self.site)
            self._own.session.use_cookies(self._cookies)
            self._sessions.append(self._own.session)
        return self._own.session

    def close(self) -> None:
        for session in self._sessions:
            session.close()

    def stop(self) -> None:
        """End all exchanges and waits of other threads at once: they get Stopped."""
        self.pacer.stop()
        for session in list(self._sessions):
            session.adapter.shut_down()

    @contextlib.contextmanager
    def permit(self, url: str) -> Iterator[None]:
        """Check `url`, wait for its host's turn, and keep the turn while the context lasts: for a browser's use."""
        self.check(url)
        with self.pacer.turn(url):
            yield

    def use_cookies(self, cookies: list[dict]) -> None:
        """Take over the browser's cookies, given as DevTools gives them, so that photos come from the same session."""
        self._session.use_cookies(cookies)
        self._cookies = cookies

    def check(self, url: str) -> None:
        """Return if `url` may be asked for. Raises Refused (scheme, private address, robots.txt) or Failed."""
        self._check_address(url)
        self.robots.check(url)

    def fetch(self, url: str, referer: str | None = None) -> Photo:
        """Fetch and verify one photo. Raises Refused (final) or Failed (after all attempts)."""
        headers = {"Referer": referer} if referer else {}
        return self.pacer.persist(lambda: self._follow(url, headers, self.check, self._read_photo))

    def _follow(self, url: str, headers: dict, check: Callable[[str], None], read: Callable):
        """Follow redirects by hand: each address on the way is checked like the first."""
        seen = {url}
        for _ in range(MAX_REDIRECTS + 1):
            check(url)
            self.pacer.wait(url)
            status, result = self._ask(url, headers, read)
            if status not in REDIRECTS:
                return result
            if not result:
                raise Refused(f"redirect without an address: status {status}")
            url = absolute(url, result)
            if url is None:
                raise Refused(f"redirect to no usable address: {result}")
            if url in seen:
                raise Refused("redirect loop")
            seen.add(url)
        raise Refused(f"too many redirects: more than {MAX_REDIRECTS}")

    def _ask(self, url: str, headers: dict, read: Callable) -> tuple[int, object]:
        """Ask once; return the status, and the address of a redirect or else what `read` makes of the answer."""
        started, host = self.pacer.clock(), urlsplit(url)
        options = {"stream": True, "allow_redirects": False, "timeout": self.politeness.timeout}
        try:
            with (
                self._session.adapter.deadline(url, self.politeness.total_timeout),
                self._session.get(url, headers=headers, proxies=self._proxies_to(url), **options) as response,
            ):
                latency = self.pacer.clock() - started
                self._answered.add(host.netloc)
                status = response.status_code
                if status in BUSY or status == 403 and "Retry-After" in response.headers:
                    raise Busy(f"status {status}", url, parse_retry_after(response.headers.get("Retry-After", "")))
                is_redirect = status in REDIRECTS
                result = self._session.get_redirect_target(response) if is_redirect else read(url, response)
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, UnicodeError) as error:
            raise Refused(f"not a usable address: {error}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                found = re.search(r"certificate verify failed: ([^(\"']*)", str(error))
                raise Failed(
                    f"certificate of {host.netloc} not trusted: {found[1].strip() if found else error}; name one to "
                    "trust with ca_file, or set verify = false, under [request]"
                ) from error
            if "WRONG_VERSION_NUMBER" in str(error) or "record layer failure" in str(error):
                raise Failed(f"{host.netloc} does not speak https: write http:// in its address") from error
            said = _describe(error)
            if said == "connection refused" and is_loopback(host.hostname) and host.netloc not in self._answered:
                start = f"start it with: {self.site.serve}" if self.site.serve else "start it, then run this again"
                raise Failed(f"nothing answers at {host.netloc}: {start}") from error
            is_plain = said == "connection broken" and host.scheme == "http" and host.netloc not in self._answered
            raise Busy(f"{said}: does the host want https://?" if is_plain else said, url) from error
        except ValueError as error:  # requests reads the address of a redirect that it is told not to follow
            raise Refused(f"redirect to no usable address: {error}") from error
        self.pacer.answered(url, latency)
        return status, result

    def _read_photo(self, url: str, response: requests.Response) -> Photo:
        status = response.status_code
        if not 200 <= status < 300:
            raise Refused(f"status {status}", *(["request"] if status in (401, 403) else []))
        limits = self.politeness
        if limits.respect_noai and (word := forbidding_header(response.raw.headers.getlist("X-Robots-Tag"))):
            raise Refused(f"X-Robots-Tag: {word}", "respect_noai")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        declared = response.headers.get("Content-Length", "")
        if declared.isascii() and declared.isdigit() and len(declared) < 20 and int(declared) > limits.max_bytes:
            raise Refused(f"too many bytes: {int(declared):,} declared", "max_bytes")
        content = _read_body(response, limits.max_bytes + 1)
        if len(content) > limits.max_bytes:
            raise Refused(f"too many bytes: more than {limits.max_bytes:,}", "max_bytes")
        if not content:
            raise Refused("empty body")
        try:
            extension, width, height = verify_photo(content, limits.max_pixels)
        except Refused as error:
            if not str(error).startswith("cannot be decoded"):
                raise
            if "Content-Length" not in response.headers and not response.raw.chunked:
                # closing the connection was the only end of the body: it may have been cut short
                raise Busy(str(error), url) from error
            if not kind or kind.startswith("image/") and kind != "image/svg+xml":
                raise
            raise Refused(f"not a photo: {kind}", "formats", "request") from error
        if width < limits.min_width:
            raise Refused(f"too small: {width} × {height}", "min_width")
        return Photo(content, hashlib.sha256(content).hexdigest(), extension, width, height, url)

    def _get_robots(self, url: str, limit: int) -> tuple[int, bytes]:
        def read(_, response: requests.Response) -> tuple[int, bytes]:
            return response.status_code, _read_body(response, limit)

        return self.pacer.persist(lambda: self._follow(url, {"Accept": "text/plain"}, self._check_address, read))

    def _check_address(self, url: str) -> None:
        """Raises Refused unless `url` is http(s) and leads to public addresses or such as the site file allows."""
        try:
            parts = urlsplit(url)
            port = parts.port or 0
        except ValueError as error:
            raise Refused(f"not a usable address: {error}") from error
        if parts.scheme not in ("http", "https"):
            raise Refused(f"not http: {parts.scheme or 'no scheme'}")
        if not parts.hostname:
            raise Refused("not a usable address: no host")
        host = (parts.hostname, port)
        if host in self._public_hosts:
            return
        try:
            found = {entry[4][0] for entry in socket.getaddrinfo(*host, type=socket.SOCK_STREAM)}
        except (OSError, UnicodeError) as error:
            if self._proxies_to(url):
                return  # behind a proxy, names are the proxy's business
            raise Failed(f"host not found: {parts.hostname} ({error})") from error
        for text in found:
            address = ipaddress.ip_address(text.partition("%")[0])
            address = getattr(address, "ipv4_mapped", None) or address
            if not address.is_global and not any(address in network for network in self._private):
                raise Refused(f"private address: {text}", "allow_private")
        self._public_hosts.add(host)

    def _proxies_to(self, url: str) -> dict[str, str]:
        host = urlsplit(url).netloc
        if host not in self._proxies:  # read anew, the environment costs a photo a millisecond or two
            self._proxies[host] = requests.utils.get_environ_proxies(url)
        return self._proxies[host]


def verify_photo(content: bytes, max_pixels: int) -> tuple[str, int, int]:
    """Decode a photo whole and return (file extension, width, height). Raises Refused.

    The size is judged before anything is decoded, and decoding is bounded in time and memory.
    """
    try:
        facts = inspect(content, Limits(bytes=len(content), pixels=max_pixels))
    except UnreadablePhoto as error:
        reason = error.reason if error.kind == "library" else error.reason.partition(";")[0]
        if "pixels are more than" in reason:
            raise Refused(f"too many pixels: {reason}", "max_pixels") from error
        raise Refused(f"cannot be decoded: {reason.removeprefix('cannot be decoded: ')}", "formats") from error
    return FORMATS[facts.format], facts.width, facts.height


def _read_body(response: requests.Response, most: int) -> bytes:
    content = bytearray()
    for part in response.raw.stream(65536, decode_content=True):
        content += part
        if len(content) >= most:
            break
    return bytes(content[:most])


def _describe(error: Exception) -> str:
    text = str(error)
    if isinstance(error, requests.exceptions.ConnectTimeout | requests.exceptions.ReadTimeout) or "timed out" in text:
        return "no answer in time"
    if "IncompleteRead" in text or "InvalidChunkLength" in text:
        return "body ended early"
    if "refused" in text.lower():
        return "connection refused"
    if "reset" in text or "aborted" in text:
        return "connection broken"
    if isinstance(error, requests.exceptions.SSLError):
        return "no encrypted connection"
    return type(error).__name__
