"""A site file: where a site's listings are, what its pages look like, how politely to ask."""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import re
import shlex
import ssl
import tomllib
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from urllib.parse import quote_plus, urlsplit

import soupsieve

from scraper import __version__
from scraper.addresses import lasting

SITES = Path(__file__).parent / "sites"
PAGING_KINDS = ("none", "scroll", "button", "next", "numbered")
# these belong to the journal; a site's own field must not write over them
RESERVED_FIELDS = {
    *("url", "page_url", "listing", "label", "time", "status", "reason"),
    *("sha256", "bytes", "width", "height", "final_url"),
}

# What can stand in a header, and what of selectors BeautifulSoup knows but no browser does.
SENDABLE = re.compile(r"(?!\s)[\t\x20-\x7e\xa0-\xff]*")
NOT_IN_BROWSERS = re.compile(r"(?<!\\):(-soup-contains(-own)?|contains|matches)\b|!=")


class SiteError(ValueError):
    """A site file that cannot be used; the text names the file, the key and what to write instead."""


@dataclass(frozen=True)
class Start:
    """One page to start from: what its listings claim to be (`label`, a lower-case slug) and where the cars are."""

    url: str
    label: str
    city: str | None = None


@dataclass(frozen=True)
class Paging:
    """How to reach the listings that the first page does not show, and when to stop."""

    # none (as when it is left out) · scroll · button (clicked for more) · next (a link or button) · numbered ({page})
    kind: str | None = None
    button: str | None = None
    next: str | None = None
    end: str | None = None  # present when everything is loaded
    empty: str | None = None  # present when a search finds nothing
    first_page: int | None = None  # None: 1, and it is said where that page leads back to another
    step: int = 1  # from one {page} to the next: 20 where a site counts 0, 20, 40
    click: tuple[str, ...] = ()  # clicked once where they show, on every page: consent dialogs, "enter" gates
    settle: float = 1.0  # seconds without a new card or photo after which a page with scripts is taken
    max_pages: int = 500  # pages, scrolls or clicks per start entry: a page that never ends must end
    max_listings: int = 20_000  # per page
    patience: float = 8.0  # seconds without a new listing after which a page counts as complete

    @property
    def first(self) -> int:
        return 1 if self.first_page is None else self.first_page


@dataclass(frozen=True)
class Selectors:
    """CSS selectors; `css@attribute` reads an attribute and `@attribute` one of the listing's own element."""

    listing: str
    photos: str | None = None  # may be left out when [detail] has its own
    photos_path: str | None = None  # where the addresses are in a JSON script that `photos` selects: a.b.*.url
    frame: str | None = None  # the <iframe> that holds the listings
    replace: dict[str, str] = field(default_factory=dict)  # regular expression -> text, as thumbnail -> full size
    ignore_query: tuple[str, ...] = ()  # query parameters of addresses that change from visit to visit
    ignore_path: tuple[str, ...] = ()  # regular expressions for pieces of an address's path that do
    id: str | None = None
    id_pattern: str | None = None  # a regular expression whose first group is the id
    link: str | None = None  # the listing's own page


@dataclass(frozen=True)
class Detail:
    """The listing's own page, for sites that show the gallery only there; selectors look at the whole page."""

    photos: str
    photos_path: str | None = None
    frame: str | None = None  # the <iframe> that holds the gallery
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What is sent with every request, by the browser and for photos, and whose certificates are trusted."""

    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)  # for the hosts of the start entries
    user_agent: str | None = None  # instead of the one that names the scraper and `contact`
    ca_file: str | None = None  # certificates to trust besides the usual ones; a path beside the site file
    verify: bool = True  # false trusts any certificate


@dataclass(frozen=True)
class Politeness:
    """How hard the site may be asked; a site's robots.txt can only make this slower."""

    delay: float = 2.0  # seconds between two requests to one host
    jitter: float = 0.5  # up to this share of the delay is added at random
    attempts: int = 4
    timeout: float = 20.0  # seconds without a byte
    total_timeout: float = 120.0  # seconds for one photo, however steadily it drips
    page_timeout: float = 30.0
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    min_width: int = 2  # pixels; smaller pictures are icons, and those of one pixel count visitors
    allow_private: tuple[str, ...] = ()  # addresses or networks inside a private network that may be asked
    respect_noai: bool = True  # noai, noimageai, noindex and noimageindex, in headers and in pages
    restart_browser_every: int = 50  # pages


@dataclass(frozen=True)
class Site:
    """One site file, checked."""

    name: str
    contact: str
    starts: tuple[Start, ...]
    selectors: Selectors
    paging: Paging = Paging()
    detail: Detail | None = None
    politeness: Politeness = Politeness()
    request: Request = Request()
    fields: dict[str, str] = field(default_factory=dict)
    notice: str = ""  # what to know about this site's terms, shown before the first crawl
    serve: str | None = None  # the command that starts a site on this machine, said when nothing answers there
    source: str = ""  # what to write on the command line for this site: its name or the path of its file

    @property
    def user_agent(self) -> str:
        return self.request.user_agent or f"Mozilla/5.0 (compatible; {ROBOT_NAME}/{__version__}; +{self.contact})"

    @property
    def reading(self) -> str:
        """A hash of the settings by which a listing's own page is read: under others it would be read otherwise."""
        tables = filter(None, (self.selectors, self.detail))
        settings = [{key: value for key, value in vars(table).items() if value} for table in tables]
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:12]

    def at(self, base_url: str) -> Site:
        """Return the same site at another scheme, host and port, as when a copy runs on a free local port."""
        base = urlsplit(base_url)
        if base.scheme not in ("http", "https") or not base.netloc:
            raise SiteError(f"--base-url {base_url!r} is no address; write it as http://127.0.0.1:8000")
        moved = (urlsplit(start.url)._replace(scheme=base.scheme, netloc=base.netloc) for start in self.starts)
        starts = (replace(start, url=url.geturl()) for start, url in zip(self.starts, moved, strict=True))
        return replace(self, starts=tuple(starts))

    def starting_at(self, url: str, label: str | None = None, city: str | None = None) -> Site:
        """Return the site with `url` as its only start; label and city come from the start entry that it resembles.

        Raises SiteError when no label is given and the site's entries leave more than one possible.
        """
        if urlsplit(url).scheme not in ("http", "https"):
            raise SiteError(f"--start-url {url!r} is no address; it begins with http:// or https://")
        path = urlsplit(url).path
        kin = [start for start in self.starts if urlsplit(start.url).path == path] or list(self.starts)
        labels = {start.label for start in kin}
        if label is None and len(labels) > 1:
            raise SiteError(f"{url} could be any of {', '.join(sorted(labels))}; say which with --label")
        cities = {start.city for start in kin if start.url == url}
        return replace(self, starts=(Start(url, label or labels.pop(), city or (cities.pop() if cities else None)),))

    def name_of(self, url: str, guess: bool = True) -> str:
        """Return the name of a page or a photo: its address without what changes from visit to visit."""
        return lasting(url, self.selectors.ignore_query, self.selectors.ignore_path, guess)


ROBOT_NAME = "CarspotterScraper"


def load_site(name: str) -> Site:
    """Read the site file `name`: a name in `sites/` or a path ending in .toml. Raises SiteError."""
    path = Path(name) if name.endswith(".toml") else SITES / f"{name}.toml"
    if not path.is_file():
        known = sorted(file.stem for file in SITES.glob("*.toml"))
        raise SiteError(f"no site file {path}; known sites are {', '.join(known)}, or give the path of a .toml file")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Notepad begins a file with a mark
    except tomllib.TOMLDecodeError as error:
        hint = 'text stands in plain quotes ("), and a backslash in it is written twice'
        raise SiteError(f"{path} is not TOML: {error}; {hint}") from error
    except UnicodeDecodeError as error:
        raise SiteError(f"{path} is not TOML: save it as UTF-8 ({error})") from error
    return replace(parse_site(content, path), source=shlex.quote(name))


def parse_site(content: dict, path: Path) -> Site:
    """Return the Site that the content of a site file describes. Raises SiteError, naming `path` and the key."""
    content = {"name": path.stem, "source": path.stem} | content
    try:
        content["starts"] = _read_starts(content.pop("start", []))
        content |= {key: _fill(kind, content[key], key) for key, kind in TABLES.items() if key in content}
        site = _fill(Site, content, "the file")
        if site.request.ca_file:
            ca_file = path.parent / site.request.ca_file
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_file)
            except OSError as error:
                said = "holds no certificate in PEM format" if ca_file.is_file() else "is not there"
                raise SiteError(f"ca_file {str(ca_file)!r} {said}") from error
            site = replace(site, request=replace(site.request, ca_file=str(ca_file)))
        _check(site)
    except SiteError as error:
        raise SiteError(f"{path}: {error}") from None
    return site


def _read_starts(entries: list[dict]) -> tuple[Start, ...]:
    """Return one start for each city of an entry; {city} in its URL is replaced by the city."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SiteError("starts are a list of tables; write [[start]], with two brackets")
    if not entries:
        raise SiteError("no [[start]]; give at least one with url and label")
    starts = []
    for entry in entries:
        cities = entry.get("cities") or [entry.get("city")]
        if not isinstance(cities, list):
            raise SiteError(f'cities is {cities!r}; write a list, as in cities = ["pune"]')
        for city in cities:
            values = {key: value for key, value in entry.items() if key != "cities"} | {"city": city}
            start = _fill(Start, values, "start")
            url = start.url.replace("{city}", quote_plus(city)) if city else start.url
            starts.append(replace(start, url=url))
    return tuple(starts)


TABLES = {"paging": Paging, "selectors": Selectors, "detail": Detail, "politeness": Politeness, "request": Request}
# What a field's annotation allows in TOML; others are checked by whoever reads them.
TYPES = {
    "str": (str, "text"),
    "float": ((int, float), "a number"),
    "int": (int, "a whole number"),
    "bool": (bool, "true or false"),
    "tuple[str, ...]": (list, "a list of text"),
    "dict[str, str]": (dict, "a table of text"),
}


def _fill(kind: type, values: dict, where: str):
    """Return a dataclass with these values. Raises SiteError for one that is unknown, missing or of another type."""
    if not isinstance(values, dict):
        raise SiteError(f"{where} is {values!r}; it must be one table: write [{where}], and its keys below")
    known = {entry.name: entry for entry in fields(kind)}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            meant = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            if home := next((name for name, table in TABLES.items() if key in table.__dataclass_fields__), None):
                meant = f"write it under [{home}]"
            raise SiteError(f"unknown key {key!r} in {where}; {meant}")
        allowed, words = TYPES.get(known[key].type.removesuffix(" | None"), (object, ""))
        parts = value if allowed is list else value.values() if isinstance(value, dict) else ()
        is_right = isinstance(value, allowed) and all(isinstance(part, str) for part in parts)
        if words and value is not None and not is_right:
            raise SiteError(f"{key} in {where} is {value!r}; it must be {words}")
        least = 0.01 if key.endswith("timeout") else int(known[key].type == "int")
        if isinstance(value, int | float) and not value >= least and key not in ("first_page", "step"):
            raise SiteError(f"{key} in {where} is {value!r}; it must be at least {least}")
    for key, entry in known.items():
        if key not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise SiteError(f"{where} needs {key!r}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _check(site: Site) -> None:
    """Raise SiteError for what does not go together."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", site.name):
        raise SiteError(f"name {site.name!r} names a folder; use lower-case letters, digits, _ and -")
    if "@" not in site.contact and "://" not in site.contact:
        raise SiteError("contact must be an e-mail or web address at which the site's owner can reach you")
    who = "user_agent" if site.request.user_agent else "contact"
    for key, text in ((who, site.user_agent), *site.request.headers.items(), *site.request.cookies.items()):
        if not (key.isascii() and SENDABLE.fullmatch(text)):
            raise SiteError(f"{key} cannot be sent as {text!r}: use letters of western Europe (Latin-1), on one line")
    try:
        _ = [ipaddress.ip_network(network) for network in site.politeness.allow_private]
    except ValueError as error:
        raise SiteError(f"allow_private: {error}; write it as 127.0.0.1 or 10.0.0.0/8") from error
    if site.paging.step == 0:
        raise SiteError("step cannot be 0")
    if site.paging.kind not in (None, *PAGING_KINDS):
        raise SiteError(f"paging kind {site.paging.kind!r} is not known; known are {', '.join(PAGING_KINDS)}")
    if site.paging.kind in ("button", "next") and not getattr(site.paging, site.paging.kind):
        raise SiteError(f"paging kind {site.paging.kind!r} needs the selector {site.paging.kind!r} in [paging]")
    for start in site.starts:
        if urlsplit(start.url).scheme not in ("http", "https"):
            raise SiteError(f"start url {start.url!r} is neither http nor https")
        if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", start.label):
            raise SiteError(f"label {start.label!r} becomes a class name; use lower-case letters, digits and _")
        if site.paging.kind == "numbered" and "{page}" not in start.url:
            raise SiteError(f"paging by number needs {{page}} in the start url {start.url!r}")
        url = start.url.replace("{page}", "") if site.paging.kind == "numbered" else start.url
        if left := re.search(r"\{\w*\}", url):
            what = "only paging kind 'numbered' fills it" if left[0] == "{page}" else "cities = ['pune'] fills {city}"
            raise SiteError(f"{left[0]} is left in the start url {start.url!r}; {what}")
    if taken := RESERVED_FIELDS & {*site.fields, *(site.detail.fields if site.detail else ())}:
        raise SiteError(f"fields {', '.join(sorted(taken))} belong to the journal; name them otherwise")
    for key in ("id", "id_pattern", "link"):
        if key in site.fields and not getattr(site.selectors, key):
            raise SiteError(
                f"{key} stands under [fields]: write it above, under [selectors], or name the field otherwise"
            )
    if not site.detail and not site.selectors.photos:
        raise SiteError("selectors needs 'photos', which finds the pictures inside a listing")
    if site.detail and not site.selectors.link:
        raise SiteError("[detail] needs the selector 'link' in [selectors], which leads to the listing's page")
    for name, selector in named_selectors(site).items():
        css, _ = split_selector(selector)
        unknown = NOT_IN_BROWSERS.search(re.sub(r"""(["']).*?\1""", "", css))
        if unknown and "fields." not in name and name != "selectors.id":
            raise SiteError(
                f"selector {name} = {selector!r}: no browser knows {unknown[0]!r}; use classes or attributes"
            )
        try:
            soupsieve.compile(css or "*")
        except (soupsieve.SelectorSyntaxError, NotImplementedError) as error:
            hint = "; an attribute is written as img@src" if "::" in css else ""
            hint = "; write CSS, as div.car, instead of XPath" if css.startswith("/") else hint
            raise SiteError(f"selector {name} = {selector!r}: {str(error).splitlines()[0]}{hint}") from error
    id_pattern = site.selectors.id_pattern
    patterns = {**site.selectors.replace, **dict.fromkeys((*site.selectors.ignore_path, id_pattern or ""), "")}
    for pattern, text in patterns.items():
        try:
            re.sub(pattern, text, "")
        except (re.error, IndexError) as error:
            raise SiteError(f"{pattern!r} in [selectors] is no regular expression: {error}") from error
    if id_pattern and re.compile(id_pattern).groups != 1:
        raise SiteError(f"id_pattern {id_pattern!r} needs exactly one group ( )")


def split_selector(selector: str | None) -> tuple[str, str | None]:
    """Return the CSS part ("" for the element itself) and the attribute, if any, of `css@attribute`."""
    css, attribute = re.fullmatch(r"(.*?)(?:@([\w:.-]+))?", (selector or "").strip(), re.DOTALL).groups()
    return css.strip(), attribute


def named_selectors(site: Site) -> dict[str, str]:
    """Return every selector of a site under its name in the site file, as `selectors.listing` or `detail.photos`."""
    named = {f"selectors.{key}": getattr(site.selectors, key) for key in ("frame", "listing", "id", "link", "photos")}
    named |= {f"paging.{key}": getattr(site.paging, key) for key in ("button", "next", "end", "empty")}
    named |= {f"paging.click {selector}": selector for selector in site.paging.click}
    named |= {f"fields.{key}": value for key, value in site.fields.items()}
    if site.detail:
        named |= {f"detail.{key}": getattr(site.detail, key) for key in ("frame", "photos")}
        named |= {f"detail.fields.{key}": value for key, value in site.detail.fields.items()}
    return {name: selector for name, selector in named.items() if selector}
