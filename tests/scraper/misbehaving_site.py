"""A used-car site that does everything wrong, each fault under its own path, for the tests of the scraper."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import http.server
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

from PIL import Image

from tests.scraper import hard_sites, lively_sites, reported_sites, unsaid_sites


def jpeg(name: str, size: tuple[int, int] = (64, 48), mode: str = "RGB", kind: str = "JPEG", **options) -> bytes:
    """Return a picture whose colours follow from `name`, so that each name has bytes of its own."""
    digest = hashlib.sha256(name.encode()).digest()
    image = Image.frombytes("RGB", (4, 2), digest[:24]).resize(size).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims a size which would fill the memory."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


SCROLL_SCRIPT = """
let page = 0, busy = false, done = false;
const query = new URLSearchParams(location.search);
async function more() {
  if (busy || done) return;
  busy = true;
  const answer = await (await fetch(`/api/cards?page=${++page}&${query}`)).json();
  document.querySelector("main").insertAdjacentHTML("beforeend", answer.html);
  done = answer.last;
  if (done && !query.has("silent")) document.body.insertAdjacentHTML("beforeend", "<p id=end>");
  busy = false;
  watch();
}
function watch() { // each picture gets its address when it comes into view, as on real sites
  document.querySelectorAll("img[data-src]").forEach(img => seen.observe(img));
}
const seen = new IntersectionObserver(entries => entries.forEach(entry => {
  if (entry.isIntersecting) { entry.target.src = entry.target.dataset.src; seen.unobserve(entry.target); }
}));
watch();
"""
ON_SCROLL = """
let left = query.has("asleep") ? 0 : Infinity, before = 0; // loads, until it is moved up again
addEventListener("scroll", () => {
  if (query.has("asleep") && scrollY < before) left = 2;
  before = scrollY;
  if (!busy && left > 0 && innerHeight + scrollY >= document.body.scrollHeight - 50) { left--; more(); }
});
"""
DATA_URI = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


MODULES = (reported_sites, lively_sites, hard_sites, unsaid_sites)
REPORTED = {name: module for module in MODULES for name in module.SITES}


class MisbehavingSite:
    """The site on a free port of this machine, as a context manager; `log` lists the paths asked for, in order.

    `robots` is the text of robots.txt, or a status code, or "reset". Search pages: `/search?listings=N&...`.
    """

    def __init__(self, robots: str | int = "User-agent: *\nDisallow: /private/\n", host: str = "127.0.0.1"):
        self.robots = robots
        self.log: list[str] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.counts: Counter = Counter()
        self.on_request: Callable[[str], None] = lambda path: None
        self.other: str = ""
        self.closing = threading.Event()
        self._server = http.server.ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"site": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.base_url = f"http://{host}:{self.port}"

    def __enter__(self) -> MisbehavingSite:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def photo_requests(self) -> list[str]:
        return [path for path in self.log if path.endswith((".jpg", ".png"))]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: MisbehavingSite

    def log_message(self, *_) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        site = self.site
        parts = urlsplit(self.path)
        site.log.append(self.path)
        site.times.append(time.monotonic())
        site.headers.append(dict(self.headers))
        site.counts[parts.path] += 1
        site.counts[self.path] += self.path != parts.path
        site.on_request(self.path)
        name = parts.path.strip("/")
        if name == "robots.txt":
            self.robots()
        elif name in ("search", "api/cards", "detail"):
            query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
            getattr(self, name.replace("/", "_"))(query)
        elif method := getattr(self, name.partition(".")[0].replace("-", "_").replace("/", "_"), None):
            method(site.counts[parts.path])
        elif name.startswith("reported/"):
            self.reported(*name.removeprefix("reported/").partition("/")[::2], dict(parse_qsl(parts.query)))
        elif name.startswith("photos/visitors-") and "visited=1" not in self.headers.get("Cookie", ""):
            self.send(b"", status=403)
        elif name.startswith(("photos/", "private/")):
            self.send(jpeg(name))
        else:
            self.send(b"", status=404)

    def send(self, body: bytes, kind: str = "image/jpeg", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def start(self, length: int | str | None = None, **headers: str) -> None:
        """Begin an answer whose body is then written by hand; the connection ends with it."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        if length is not None:
            self.send_header("Content-Length", str(length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()

    def redirect(self, address: str) -> None:
        self.send(b"", status=302, Location=address)

    def reset(self, _=0) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def reported(self, name: str, path: str, query: dict[str, str]) -> None:
        answer = REPORTED[name].page(name, path, query, self.site.counts[self.path])
        status, headers, text = answer if isinstance(answer, tuple) else (200, {}, answer)
        kind = headers.pop("Content-Type", "text/html; charset=utf-8")
        if not isinstance(text, str):
            self.stream(text, kind)
            return
        self.send(text.encode(), kind, status, **{key.replace("-", "_"): value for key, value in headers.items()})

    def stream(self, pieces: Iterator[str], kind: str) -> None:
        """Send pieces of text as they come, to a web socket as messages."""
        self.close_connection = True
        if key := self.headers["Sec-WebSocket-Key"]:
            digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        else:
            self.send_response(200)
            self.send_header("Content-Type", kind)
        self.end_headers()
        for piece in map(str.encode, pieces):
            piece = piece.ljust(126)  # a message's shorter length would be written in another way
            self.wfile.write((struct.pack(">BBH", 0x81, 126, len(piece)) if key else b"") + piece)

    # robots.txt and pages

    def robots(self) -> None:
        robots = self.site.robots
        if robots == "reset":
            self.reset()
        elif isinstance(robots, int):
            self.send(b"", "text/plain", robots)
        else:
            self.send(robots.encode(), "text/plain")

    def card(self, number: int, query: dict[str, str]) -> str:
        photo = f"/photos/{query.get('model', 'swift')}-{number}.jpg"
        gallery = f'<img class="photo" src="{DATA_URI}" data-src="{photo}">'
        if "private" in query and number % 3 == 0:
            gallery += f'<img class="photo" src="{DATA_URI}" data-src="/private/{number}.jpg">'
        layout = "ad" if "changed" in query else "listing"
        title = "मारुति स्विफ्ट" if "hindi" in query else "Swift VXi"
        link = f'<a class="more" href="/detail?number={number}">more</a>'
        return (
            f'<article class="{layout}" data-listing-id="{number}"><h2>{title} {number}</h2>'
            f'<span class="city">Pune</span><div class="gallery" style="height:200px">{gallery}</div>{link}</article>'
        )

    def cards(self, page: int, query: dict[str, str], size: int = 5) -> tuple[str, bool]:
        total = int(query.get("listings", 5))
        first = page * size
        if "repeat" in query and first >= total:
            first = max(0, total - size)  # the last page once more, for ever
        if "endless" in query:
            total = first + size
        html = "".join(self.card(number, query) for number in range(first, min(first + size, total)))
        return html, first + size >= total and "repeat" not in query and "endless" not in query

    def search(self, query: dict[str, str]) -> None:
        page = int(query.get("page", 0))
        if "status" in query and (query["status"] == "403" or self.site.counts[self.path] == 1):
            body = b"<!doctype html><title>Go away</title><article class=listing></article>"
            self.send(body, "text/html", int(query["status"]), Retry_After="1")
            return
        if self.site.counts[self.path] <= int(query.get("reset", 0)):
            self.reset()
            return
        if "session" in query and page >= int(query["session"]):
            self.redirect("/login")
            return
        if query.get("rot") == str(page) or page >= int(query.get("rot-from", page + 1)):
            query["changed"] = "1"
        html, last = self.cards(page, query)
        script = SCROLL_SCRIPT + (ON_SCROLL if query.get("kind") == "scroll" else "")
        if query.get("kind") == "button":
            html += '<button id="more" onclick="more()">more</button>'
        if query.get("kind") == "next" and not last:
            others = "&".join(f"{key}={value}" for key, value in query.items() if key not in ("page", "changed"))
            html += f'<a rel="next" href="/search?{others}&page={page + 1}">next</a>'
        if "alert" in query:
            script += "alert('Subscribe!'); setTimeout(() => alert('Really?'), 50);"
        if "hang" in query:
            script = "while (true) {}"
        if "leak" in query:
            script = "const kept = []; while (true) kept.push(new Array(1e6).fill().map(Math.random));"
        if "cookie" in query and "visited=1" not in self.headers.get("Cookie", ""):
            self.send(b"", "text/html", 302, Location=self.path, Set_Cookie="visited=1; Path=/")
            return
        meta = '<meta name="robots" content="noai">' if "noai" in query else ""
        is_past_the_end = "<article" not in html
        empty = ""
        if "empty" in query or is_past_the_end and "mute" not in query:
            empty = '<p id="nothing">Nothing found</p>'
        body = f"<!doctype html><meta charset=utf-8>{meta}{empty}<main>{html}</main><script>{script}</script>"
        if "blank" in query or "empty" in query:
            body = f"<!doctype html>{empty}<p>Welcome</p>"
        status = 404 if is_past_the_end and "missing" in query else 200
        self.send(body.encode(), "text/html; charset=utf-8", status)

    def login(self, _) -> None:
        self.send(b"<!doctype html><form>Your session has expired. Password: <input></form>", "text/html")

    def api_cards(self, query: dict[str, str]) -> None:
        html, last = self.cards(int(query["page"]), query)
        self.send(json.dumps({"html": html, "last": last}).encode(), "application/json")

    def detail(self, query: dict[str, str]) -> None:
        number = query["number"]
        photos = "".join(f'<img src="{DATA_URI}" data-src="/photos/detail-{number}-{k}.jpg">' for k in range(2))
        body = f"<!doctype html><h1>Car {number}</h1><div id=gallery>{photos}</div>"
        self.send(body.encode(), "text/html")

    # photos: each method is a fault, under its own name

    def delay(self, _) -> None:
        self.site.closing.wait(20)

    def drip(self, _) -> None:
        body = jpeg("drip")
        self.start(len(body))
        for byte in body:
            self.wfile.write(bytes([byte]))
            if self.site.closing.wait(0.03):
                return

    def drip_headers(self, _) -> None:
        self.close_connection = True
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Nothing: 1\r\n" * 1000:
            self.wfile.write(bytes([byte]))
            if self.site.closing.wait(0.03):
                return

    def partial(self, _) -> None:
        body = jpeg("partial")
        self.start(len(body))
        self.wfile.write(body[: len(body) // 2])

    def partial_once(self, count: int) -> None:
        self.partial(count) if count == 1 else self.send(jpeg("partial"))

    def cut_without_length(self, count: int) -> None:
        body = jpeg("cut")
        self.start()
        self.wfile.write(body[: len(body) // 2] if count == 1 else body)

    def broken_chunk(self, _) -> None:
        self.start(Transfer_Encoding="chunked")
        self.wfile.write(b"20\r\n" + b"x" * 32 + b"\r\nnonsense\r\n")

    def wrong_length(self, _) -> None:
        body = jpeg("wrong")
        self.start(len(body) - 200)
        self.wfile.write(body)

    def endless(self, _) -> None:
        self.start()
        while not self.site.closing.is_set():
            self.wfile.write(b"x" * 65536)

    def absurd_length(self, _) -> None:
        self.start("9" * 5000)  # Python refuses to read numbers of so many digits
        self.wfile.write(jpeg("absurd"))

    def declared_huge(self, _) -> None:
        self.start(10**12)

    def huge_picture(self, _) -> None:
        self.send(png_claiming(8000, 7000), "image/png")

    def bomb(self, _) -> None:
        self.send(png_claiming(60_000, 60_000), "image/png")

    def html(self, _) -> None:
        self.send(jpeg("html")) if self.is_member() else self.send(b"<html>log in first</html>", "text/html")

    def html_as_jpeg(self, _) -> None:
        self.send(b"<html>log in first</html>")

    def svg(self, _) -> None:
        self.send(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml")

    def svg_as_jpeg(self, _) -> None:
        self.send(b"<svg xmlns='http://www.w3.org/2000/svg'/>")

    def truncated(self, _) -> None:
        body = jpeg("truncated", (400, 300))
        self.send(body[: len(body) // 2])

    def empty(self, _) -> None:
        self.send(b"")

    def missing(self, _) -> None:
        self.send(b"", status=404)

    def is_member(self) -> bool:
        return "member=1" in self.headers.get("Cookie", "")

    def forbidden(self, _) -> None:
        self.send(jpeg("forbidden")) if self.is_member() else self.send(b"", status=403)

    def banned(self, count: int) -> None:
        self.send(jpeg("banned")) if count <= 5 else self.send(b"", status=403)

    def gone(self, _) -> None:
        self.send(b"", status=410)

    def busy_seconds(self, count: int) -> None:
        self.send(b"", status=429, Retry_After="7") if count == 1 else self.send(jpeg("busy"))

    def busy_date(self, count: int) -> None:
        date = email.utils.formatdate(time.time() + 11, usegmt=True)
        self.send(b"", status=429, Retry_After=date) if count == 1 else self.send(jpeg("busy date"))

    def busy_forbidden(self, count: int) -> None:
        self.send(b"", status=403, Retry_After="7") if count == 1 else self.send(jpeg("busy forbidden"))

    def busy_for_a_day(self, _) -> None:
        self.send(b"", status=429, Retry_After="86400")

    def error_burst(self, count: int) -> None:
        self.send(b"", status=(500, 502, 503)[count - 1]) if count < 4 else self.send(jpeg("burst"))

    def error(self, _) -> None:
        self.send(b"", status=500)

    def origin_down(self, _) -> None:
        self.send(b"", status=522)

    def not_implemented(self, _) -> None:
        self.send(b"", status=501)

    def not_modified(self, _) -> None:
        self.send(b"", status=304)

    def to_raw(self, _) -> None:
        query = urlsplit(self.path).query
        if query:
            self.send(jpeg("raw"), status=200 if unquote(query) == "मारुति" else 404)
        else:
            self.redirect("/to-raw.jpg?मारुति".encode().decode("latin-1"))

    def loop(self, _) -> None:
        self.redirect("/loop-back.jpg")

    def loop_back(self, _) -> None:
        self.redirect("/loop.jpg")

    def to_nowhere(self, _) -> None:
        self.redirect("http://[half an address")

    def to_file(self, _) -> None:
        self.redirect("file:///etc/passwd")

    def to_private(self, _) -> None:
        self.redirect("http://10.1.2.3/photo.jpg")

    def to_metadata(self, _) -> None:
        self.redirect("http://169.254.169.254/latest/meta-data")

    def to_other_host(self, _) -> None:
        self.redirect(f"{self.site.other}/photos/other.jpg")

    def to_other_private(self, _) -> None:
        self.redirect(f"{self.site.other}/private/other.jpg")

    def noai(self, _) -> None:
        self.send(jpeg("noai"), X_Robots_Tag="noai, noimageai")

    def noai_for_others(self, _) -> None:
        self.send(jpeg("noai for others"), X_Robots_Tag="otherbot: noai")

    def cmyk(self, _) -> None:
        self.send(jpeg("cmyk", mode="CMYK"))

    def animated(self, _) -> None:
        second = Image.new("P", (64, 48), 3)
        self.send(jpeg("animated", mode="P", kind="GIF", save_all=True, append_images=[second]), "image/gif")

    def needs_cookie(self, _) -> None:
        allowed = "visited=1" in self.headers.get("Cookie", "")
        self.send(jpeg("cookie")) if allowed else self.send(b"", status=403)

    def expiring(self, _) -> None:
        is_good = "Expires=1" not in self.path
        self.send(jpeg("expiring")) if is_good else self.send(b"expired", "text/html", 403)

    def good(self, _) -> None:
        self.send(jpeg("good"))
