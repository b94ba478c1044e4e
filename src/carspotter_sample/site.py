"""A used-car site on loopback: search pages that scroll on through JavaScript, with lazily loaded pictures.

It serves the photos of the study's archive or of a folder written by `write_photos`, never what is true about them.
"""

import csv
import hashlib
import html
import io
import json
import re
import threading
import zipfile
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from PIL import Image, ImageOps

from .pages import GRID_PAGE, HOME_PAGE, PLACEHOLDER

ARCHIVE = Path(__file__).resolve().parents[2] / "data" / "sample_2.zip"  # written by `sample archive`
MEDIA = {".jpg": "image/jpeg", ".webp": "image/webp"}
PAGE_SIZE = 8
THUMBNAIL_WIDTH = 320
OTHER_MODELS = ("alto", "baleno", "dzire", "ertiga", "brezza")
MODEL_NAMES = {"swift": "Swift", "wagonr": "WagonR"} | {model: model.title() for model in OTHER_MODELS}
Answer = tuple[HTTPStatus, str, bytes]
PAGE = "text/html; charset=utf-8"


@dataclass
class Listing:
    """One advertisement as the site shows it; `photos` are (public path, file relative to the folder)."""

    id: str
    model: str
    city: str
    year: str
    price: int
    kilometres: int
    photos: list[tuple[str, str]] = field(default_factory=list)


def read_listings(
    folder: Path | zipfile.Path, public: str = "/photos/", private: str = "/photos/private/"
) -> list[Listing]:
    """Read listings.csv of a site's folder; every seventh listing keeps two photos private.

    `public` and `private` are what the two kinds of photos' addresses begin with. Raises FileNotFoundError, naming the
    folder, when it has no listings.csv.
    """
    table = folder / "listings.csv"
    if not table.is_file():
        advice = f"write the folder with `python -m carspotter sample photos --out {folder}`"
        raise FileNotFoundError(f"{table} is missing; {advice}")
    listings: dict[str, Listing] = {}
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name, path = row["listing"], row["file"]
            if name not in listings:
                numbers = int(row["price"]), int(row["kilometres"])
                listings[name] = Listing(name, row["claim"], row["city"], row["year"], *numbers)
            photos = listings[name].photos
            kept = list(listings).index(name) % 7 == 3 and len(photos) in (1, 2)
            photos.append(((private if kept else public) + path.split("/")[-1], path))
    return list(listings.values())


class SampleSite:
    """The site as a context manager: `with SampleSite() as site: site.base_url`.

    It shows the first `listings` (default: all) of the study's archive, or of a `folder` written by `write_photos`.
    Port 0 takes a free one; only loopback is bound. `site.requests` is the log: (method, path with query, status) in
    order of arrival. Raises OSError, naming the port, when it is taken.
    """

    name, usual_port = "sample", 8000
    public, private, small = "/photos/", "/photos/private/", "/thumbs/photos/"
    closed = ("/photos/private/", "/thumbs/photos/private/", "/sellers/")  # to robots
    cookie: str | None = None  # sent with every page

    def __init__(
        self, folder: Path | None = None, *, listings: int | None = None, port: int = 0, crawl_delay: float = 0.0
    ):
        self.folder = folder or zipfile.Path(ARCHIVE) / self.name
        self.listings = read_listings(self.folder, self.public, self.private)[:listings]
        self.crawl_delay = crawl_delay
        self.requests: list[tuple[str, str, int]] = []
        self.files = {path: self.folder / file for listing in self.listings for path, file in listing.photos}
        self.small_files = {self.small_path(path): path for path in self.files}
        self._thumbnails: dict[str, bytes] = {}
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"site": self}))
        except OSError as error:
            message = f"cannot serve on 127.0.0.1:{port} ({error.strerror}); choose another --port"
            raise OSError(error.errno, message) from error
        self._server.daemon_threads = True

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "SampleSite":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def serve_forever(self) -> None:
        """Serve in this thread until interrupted."""
        try:
            self._server.serve_forever()
        finally:
            self._server.server_close()

    @staticmethod
    def title_of(listing: Listing) -> str:
        """Return the title that the listing has on this site."""
        return f"Maruti Suzuki {MODEL_NAMES[listing.model]}"

    @staticmethod
    def link_of(listing: Listing) -> str:
        """Return the path of the page that shows the listing's photos."""
        return f"/used/{listing.model}"

    def allowed_photos(self, models: tuple[str, ...] | None = None) -> set[str]:
        """Return the SHA-256 of every original photo that robots.txt allows, of all or of some models."""
        listings = [one for one in self.listings if models is None or one.model in models]
        return {hashlib.sha256(self.files[path].read_bytes()).hexdigest() for path in self.open_paths(listings)}

    def open_paths(self, listings: list[Listing]) -> list[str]:
        """Return the public paths of the photos that robots.txt allows."""
        return [path for one in listings for path, _ in one.photos if not path.startswith(self.private)]

    def cover(self, listings: list[Listing], blank: str) -> str:
        """Return the first photo that robots.txt allows as a small picture, or `blank` when there is none."""
        paths = self.open_paths(listings)
        return f'<img src="{quote(self.small_path(paths[0]))}" alt="">' if paths else blank

    def found(self, model: str, city: str | None) -> list[Listing]:
        """Return the listings of a model, in one city or (None) in all."""
        return [one for one in self.listings if one.model == model and city in (None, "", one.city)]

    def small_path(self, path: str) -> str:
        """Return the address of a photo's thumbnail."""
        return self.small + path.removeprefix(self.public)

    def thumbnail(self, path: str) -> bytes:
        """Return the small JPEG of a photo; made when first asked for."""
        if path not in self._thumbnails:
            with Image.open(io.BytesIO(self.files[path].read_bytes())) as image:
                small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=75)
            self._thumbnails[path] = buffer.getvalue()
        return self._thumbnails[path]

    def respond(self, path: str, query: dict[str, str], cookie: str) -> Answer | None:
        """Return the page at `path`, or None when there is none; photos and robots.txt are seen to before."""
        if path == "/":
            return HTTPStatus.OK, PAGE, self._home().encode()
        if path == "/api/listings":
            return self._more(query)
        model = path.removeprefix("/used/")
        if path.startswith("/used/") and model in MODEL_NAMES:
            return HTTPStatus.OK, PAGE, self._search(model, query.get("city", "")).encode()
        return None

    def _more(self, query: dict[str, str]) -> Answer:
        number = query.get("page", "1")
        if not number.isdecimal() or not 1 <= int(number) <= 10_000:
            return HTTPStatus.BAD_REQUEST, "application/json", b'{"error": "page must be a number from 1"}'
        found = self.found(query.get("model", ""), query.get("city"))
        start = (int(number) - 1) * PAGE_SIZE
        shown = [self._article(one) for one in found[start : start + PAGE_SIZE]]
        answer = {"listings": shown, "more": start + PAGE_SIZE < len(found)}
        return HTTPStatus.OK, "application/json; charset=utf-8", json.dumps(answer).encode()

    def _search(self, model: str, city: str) -> str:
        found = self.found(model, city)
        cities = sorted({one.city for one in self.listings if one.model == model})
        chips = "".join(
            f'<a class="chip{" on" if one == city else ""}" href="/used/{model}{"?city=" + quote(one) if one else ""}">'
            f"{one.title() or 'All India'}</a>"
            for one in ["", *cities]
        )
        name = f"Used Maruti Suzuki {MODEL_NAMES[model]}{' in ' + html.escape(city.title()) if city else ''}"
        return GRID_PAGE.format(
            name=name,
            count=len(found),
            chips=chips,
            model=model,
            city=json.dumps(city).replace("<", "\\u003c"),
            cards="".join(map(self._article, found[:PAGE_SIZE])),
            more="true" if len(found) > PAGE_SIZE else "false",
        )

    def _home(self) -> str:
        tiles = []
        for model, name in MODEL_NAMES.items():
            found = self.found(model, None)
            picture = self.cover(found, '<div class="blank"></div>')
            about = f"<b>{name}</b><span>{len(found)} cars</span>"
            tiles.append(f'<a class="tile" href="/used/{model}">{picture}{about}</a>')
        return HOME_PAGE.format(tiles="".join(tiles))

    def _article(self, listing: Listing) -> str:
        name = self.title_of(listing)
        pictures = "".join(
            f'<img class="photo" alt="{name}, picture {number}" src="{PLACEHOLDER}" data-src="{quote(path)}" '
            f'data-srcset="{quote(self.small_path(path))} {THUMBNAIL_WIDTH}w, {quote(path)} 1024w">'
            for number, (path, _) in enumerate(listing.photos, 1)
        )
        return (
            f'<article class="listing" data-listing-id="{html.escape(listing.id)}">'
            f'<div class="gallery">{pictures}</div><span class="count">{len(listing.photos)} photos</span>'
            f'<div class="facts"><h2 class="title">{name}</h2><p><span class="price">{rupees(listing.price)}</span></p>'
            f'<p class="line"><span class="year">{listing.year}</span> · '
            f'<span class="km">{listing.kilometres:,} km</span> · <span class="city">{listing.city.title()}</span></p>'
            f'<a class="contact" href="/sellers/{listing.id}">Contact seller</a></div></article>'
        )


def rupees(amount: int) -> str:
    """Write an amount as Indian sites do: 4,35,000."""
    text = str(amount)
    head, tail = text[:-3], text[-3:]
    return "₹ " + (re.sub(r"(?<=\d)(?=(\d\d)+$)", ",", head) + "," + tail if head else tail)


class _Handler(BaseHTTPRequestHandler):
    site: SampleSite
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "GaadiBazaar", ""

    def log_message(self, *_) -> None:
        """Stay quiet: `site.requests` is the log."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        status, kind, body = self._respond(unquote(url.path), query)
        self.site.requests.append((self.command, self.path, int(status)))
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if self.site.cookie and kind == PAGE:
                self.send_header("Set-Cookie", self.site.cookie)
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):  # the visitor has left
            self.close_connection = True

    def _respond(self, path: str, query: dict[str, str]) -> Answer:
        site = self.site
        if path == "/robots.txt":
            lines = ["User-agent: *", *(f"Disallow: {closed}" for closed in site.closed)]
            lines.append(f"Crawl-delay: {site.crawl_delay:g}\n")
            return HTTPStatus.OK, "text/plain; charset=utf-8", "\n".join(lines).encode()
        # a photo is found by its public path in a table, never by joining a path: nothing else can be asked for
        if path in site.files:
            return HTTPStatus.OK, MEDIA[Path(path).suffix], site.files[path].read_bytes()
        if path in site.small_files:
            return HTTPStatus.OK, "image/jpeg", site.thumbnail(site.small_files[path])
        missing = b"<!doctype html><title>Not found</title><h1>This page does not exist</h1><a href='/'>Home</a>"
        cookie = self.headers.get("Cookie", "")
        return site.respond(path, query, cookie) or (HTTPStatus.NOT_FOUND, PAGE, missing)
