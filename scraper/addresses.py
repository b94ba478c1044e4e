"""Addresses: as a browser reads them, without what changes between visits, and what they say of a listing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from urllib.parse import parse_qsl, unquote, urldefrag, urljoin, urlsplit

# Parameters that say how long and for whom an address is good: CloudFront, S3, Google, Akamai.
SIGNED = re.compile(r"expires|signature|key-pair-id|policy|awsaccesskeyid|googleaccessid|hdne[at]s?|x-(amz|goog)-.*")
# The same of other services, where the path names an image file.
SIGNED_FILE = re.compile(r"(auth_?)?(token|key)|exp(iry|ire)?|sign|sig|hmac|policy|ts|timestamp|oh|oe|_nc_.*")
IMAGE_PATH = re.compile(r"\.(jpe?g|png|webp|gif|avif|bmp)$", re.IGNORECASE)
SIGNED_AZURE = {"sig", "se", "st", "sp", "sv", "sr", "spr"}  # where `sig` is one of them
# Parameters that say how a visitor came to a listing, not which one it is.
TRACKING = re.compile(
    "utm_.*|.*clid|ref|referr?er|src|source|from|campaign|sid|session(_?id)?|phpsessid|jsessionid|pos(ition)?|rank|"
    "page|back|return(_?url)?"
)
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


def absolute_link(base: str, address: str) -> str | None:
    """Return the address of another page in full; None for one that is malformed or leads nowhere.

    A fragment is kept where it says which page is meant: `#/car/7`, `#!car=7`, or any on the page's own address.
    """
    url, (here, _) = absolute(base, address), urldefrag(base)
    fragment = address.strip().partition("#")[2]
    if url is None or not url.startswith(("http:", "https:")) or url == here and not fragment:
        return None
    return f"{url}#{fragment}" if fragment.startswith(("/", "!")) or fragment and url == here else url


def without_parameters(url: str, ignored: Collection[str] = ()) -> str:
    """Return the address that stays the same from visit to visit: without signatures and the `ignored` parameters."""
    head, mark, query = url.partition("?")
    if not mark:
        return url
    pairs = query.split("&")
    names = [unquote(pair.partition("=")[0]).lower() for pair in pairs]
    ignored = {name.lower() for name in ignored} | (SIGNED_AZURE if "sig" in names else set())
    ignored |= set(filter(SIGNED.fullmatch, names))
    ignored |= set(filter(SIGNED_FILE.fullmatch, names)) if IMAGE_PATH.search(head) else set()
    kept = [pair for pair, name in zip(pairs, names, strict=True) if name not in ignored]
    return f"{head}?{'&'.join(kept)}" if kept else head


def listing_ids(links: Sequence[str | None], page_url: str, ignored: Collection[str] = ()) -> list[str | None]:
    """Return for each link to a listing's own page what identifies the listing.

    This is the path, with the fragment where that is a route, and the query parameters that tell listings apart: all
    that are no tracking where the path has no number or is a script's (`view.php?id=7`), otherwise those that are
    named as an id is, and those in which links with one path differ.
    """
    bases: list[str | None] = []
    queries: list[dict[str, str]] = []
    variants: defaultdict[str | None, list[dict[str, str]]] = defaultdict(list)
    host = urlsplit(page_url).netloc
    for link in links:
        url, fragment = urldefrag(link or "")
        parts = urlsplit(without_parameters(url, ignored))
        base = SESSION_IN_PATH.sub("", parts.path).strip("/") + (f"#{fragment}" if fragment else "")
        base = base if parts.netloc == host else f"{parts.netloc}/{base}"
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        queries.append({name: value for name, value in pairs if not TRACKING.fullmatch(name.lower())})
        bases.append(base if link else None)
        variants[bases[-1]].append(queries[-1])
    ids: list[str | None] = []
    for base, query in zip(bases, queries, strict=True):
        if base is None:
            ids.append(None)
            continue
        last = base.rpartition("/")[2]
        if re.search(r"\d", SCRIPT.sub("", last)) and not SCRIPT.search(last):
            others = variants[base]
            query = {
                name: value
                for name, value in query.items()
                if NAMED.fullmatch(name.lower()) or any(other.get(name) != value for other in others)
            }
        parameters = "&".join(f"{name}={value}" for name, value in sorted(query.items()))
        ids.append("?".join(filter(None, (base, parameters))) or None)
    return ids
