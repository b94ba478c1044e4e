"""Addresses: as a browser reads them, without what changes between visits, and what they say of a listing."""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from urllib.parse import parse_qsl, unquote, urldefrag, urljoin, urlsplit

# Parameters that say how long and for whom an address is good: CloudFront, S3, Google, Akamai; a visitor's session.
SIGNED = re.compile(
    r"expires|signature|key-pair-id|policy|awsaccesskeyid|googleaccessid|hdne[at]s?|x-(amz|goog)-.*|phpsessid|jsessionid"
)
# The same of other services, and what keeps caches from answering: a guess, where the path names an image file or
# another parameter is one of those above.
PERHAPS_SIGNED = re.compile(
    r"(auth_?)?(token|key|hash)|md5|exp(iry|ire)?|sign?|hmac|policy|ts?|timestamp|oh|oe|_nc_.*|_|cb|rnd|rand(om)?|nocache"
)
IMAGE_PATH = re.compile(r"\.(jpe?g|png|webp|gif|avif|bmp)$", re.IGNORECASE)
# The same within the path, a guess as well: a code beside the second until which it is good, or that second by name.
CODE, SECOND = r"(?=[^/]*\d)[\w=~.-]{16,}", r"[12]\d{9}(?:\d{3})?"
SIGNED_PATH = rf"/(?:{CODE}/{SECOND}|{SECOND}/{CODE}|[^/]*\b(?:expires?|exp|e|st)={SECOND}[^/]*)(?=/)"
SIGNED_AZURE = {"sig", "se", "st", "sp", "sv", "sr", "spr"}  # where `sig` is one of them
# Parameters that say who a visitor is, and those that as a rule say how one came to a listing, not which one it is.
VISIT = re.compile("utm_.*|.*clid|sid|session(_?id)?|phpsessid|jsessionid")
TRACKING = re.compile("ref|referr?er|src|source|from|campaign|pos(ition)?|rank|page|back|return(_?url)?")
# Parameters that name a listing, whatever the path says.
NAMED = re.compile(r"((car|vehicle|ad|listing|item|product|offer|stock)[-_]?)?(id|no|nr|num(ber)?|code)|ad|vin|sku")
SCRIPT = re.compile(r"\.(php\d?|aspx?|jspx?|cgi|pl|do|cfm|html?)$", re.IGNORECASE)
SESSION_IN_PATH = re.compile(r";jsessionid=[^/?#]*", re.IGNORECASE)


def absolute(base: str, address: str) -> str | None:
    """Return an address of a page in full, without its fragment; None for one that is malformed.

    A backslash before the query is a slash, as the URL standard has it.
    """
    head, mark, query = re.fullmatch(r"([^?#]*)([?#]?)(.*)", address.strip(), re.DOTALL).groups()
    try:
        return urldefrag(urljoin(base, head.replace("\\", "/") + mark + query)).url
    except ValueError:
        return None


def is_loopback(host: str | None) -> bool:
    """Tell whether a host, by name or address, is this machine."""
    return host in ("localhost", "::1") or (host or "").startswith("127.")


def absolute_link(base: str, address: str) -> str | None:
    """Return the address of another page in full; None for one that is malformed or leads nowhere.

    A fragment is kept where it says which page is meant: `#/car/7`, `#!car=7`, or any on the page's own address.
    """
    url, (here, _) = absolute(base, address), urldefrag(base)
    fragment = address.strip().partition("#")[2]
    if url is None or not url.startswith(("http:", "https:")) or url == here and not fragment:
        return None
    return f"{url}#{fragment}" if fragment.startswith(("/", "!")) or fragment and url == here else url


def lasting(url: str, query: Collection[str] = (), path: Collection[str] = (), guess: bool = True) -> str:
    """Return the address that stays the same from visit to visit.

    Left out are signatures, the parameters named in `query` and the pieces of the path that match a pattern of `path`.
    Without `guess`, what is no signature for certain stays.
    """
    parts = urlsplit(url)
    pairs = parts.query.split("&") if parts.query else []
    names = [unquote(pair.partition("=")[0]).lower() for pair in pairs]
    left_out = {name.lower() for name in query} | (SIGNED_AZURE if "sig" in names else set())
    left_out |= set(filter(SIGNED.fullmatch, names))
    if guess and (IMAGE_PATH.search(parts.path) or left_out.intersection(names)):
        left_out |= set(filter(PERHAPS_SIGNED.fullmatch, names))
    head = SESSION_IN_PATH.sub("", parts.path)
    for pattern in (*path, *([SIGNED_PATH] if guess else [])):
        head = re.sub(pattern, "", head)
    if head == parts.path and not left_out.intersection(names):
        return url
    kept = [pair for pair, name in zip(pairs, names, strict=True) if name not in left_out]
    return parts._replace(path=head, query="&".join(kept)).geturl()


def listing_ids(
    links: Sequence[str | None], page_url: str, ignored: Collection[str], looks: Sequence[object]
) -> list[str | None]:
    """Return for each link to a listing's own page what identifies the listing.

    This is the path, with the fragment where that is a route, and the query parameters that tell listings apart: all
    that are no tracking where the path has no number or is a script's (`view.php?id=7`), otherwise those that are
    named as an id is, and those in which links with one path differ. Where cards with different `looks` would become
    one listing, what is tracking elsewhere counts as far as they differ in it (`view.php?ref=7`).
    """
    host = urlsplit(page_url).netloc
    parts = [_parts(link, host, ignored) if link else None for link in links]
    with_path: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for base, query in filter(None, parts):
        with_path[base].append(query)
    ids = [part and _id(*part, with_path[part[0]]) for part in parts]
    alike: defaultdict[str | None, list[int]] = defaultdict(list)
    for number, id_ in enumerate(ids):
        alike[id_].append(number)
    for number, (part, id_) in enumerate(zip(parts, list(ids), strict=True)):
        if part and len({looks[other] for other in alike[id_]}) > 1:
            ids[number] = _id(*part, [parts[other][1] for other in alike[id_]], tracking_counts=True)
    return ids


def _parts(link: str, host: str, ignored: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return the path of a link, with a foreign host and a route, and its parameters but for those of the visit."""
    url, fragment = urldefrag(link)
    parts = urlsplit(lasting(url, ignored))
    base = parts.path.strip("/") + (f"#{fragment}" if fragment else "")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = {name: value for name, value in pairs if not VISIT.fullmatch(name.lower())}
    return (base if parts.netloc == host else f"{parts.netloc}/{base}"), query


def _id(base: str, query: dict[str, str], others: list[dict[str, str]], tracking_counts: bool = False) -> str | None:
    """Return a path with those parameters that tell it from `others`, of links with the same path."""
    last = base.rpartition("/")[2]
    all_count = SCRIPT.search(last) or not re.search(r"\d", last)

    def counts(name: str) -> bool:
        is_other = any(other.get(name) != query[name] for other in others)
        if TRACKING.fullmatch(name.lower()):
            return tracking_counts and is_other
        return all_count or NAMED.fullmatch(name.lower()) or is_other

    parameters = "&".join(f"{name}={value}" for name, value in sorted(query.items()) if counts(name))
    return "?".join(filter(None, (base, parameters))) or None
