"""Which address an element of a page stands for: the largest version of its picture that can be decoded here."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from html import unescape
from importlib.util import find_spec

from bs4 import Tag
from PIL import features

# Where lazy loaders keep the address until a picture comes into view, in the order of preference.
LAZY_ATTRIBUTES = (
    "data-scraper-source",  # set by `early.js` on a picture in memory: where its bytes came from
    *("data-src", "data-original", "data-lazy-src", "data-lazy"),
    *("data-image", "data-background-image", "data-bg"),
)
LARGE = re.compile("data-.*(zoom|large|full|big|hi-?res|high|retina).*")
LIKELY = re.compile("data-.*(orig|lazy|src|url).*")
SMALL_SIZE = re.compile(
    "data-.*(thumb|small|mini|preview|placeholder|low|blur|lqip|icon|logo|avatar|hover|next|prev).*"
)
# Attributes that never hold a picture's address.
OTHER = re.compile(
    r"alt|title|id|class|name|style|width|height|loading|decoding|sizes|(data-)?(href|link|alt|title|name|caption|id)|"
    r"aria-.*|on\w+|srcset|.*-srcset|href|content|usemap|type"
)
BACKGROUND = "data-scraper-background"  # set by `loading` where a style sheet gives an element its picture
IMAGE_FILE = re.compile(r"[^\s\"'<>{}]+\.(jpe?g|png|webp|gif|avif|bmp|jfif)([?#!@;/][^\s\"'<>{}]*)?", re.IGNORECASE)
STYLE_URL = re.compile(r"url\(\s*(['\"]?)(.*?)\1\s*\)\s*(?:type\([^)]*\)\s*)?(?:([\d.]+)(?:x|dppx))?")
STAND_IN = re.compile(
    r"(spinner|placeholder|loading|loader|blank|pixel|spacer|transparent|lazy(-?load)?|1x1|no[-_]?(image|photo|img))"
    r"([-_]?\d+(x\d+)?)?\.\w+",
    re.IGNORECASE,
)
TEMPLATE = re.compile(r"(\{|%7b)\s*[a-z_][\w.]*\s*(\}|%7d)", re.IGNORECASE)  # {width}: for a script to fill
SRCSET = re.compile(r"(\s*(?=\S*[/.])\S+\s+[\d.]+[wx]\s*(,|$))+")
# Whether what a few programs read can be decoded here.
DECODABLE = {"avif": features.check("avif"), "heic": find_spec("pillow_heif") is not None}
UNDECODABLE = {"jxl", "jp2", "svg", "svg+xml"} | {kind for kind, is_read in DECODABLE.items() if not is_read}
# One step of a path: `..`, ['a name'], a name, a number or *.
PATH_PART = re.compile(r"""\[\s*(['"])(.*?)\1\s*\]|(?<=\.)(?=\.)|([^.\[\]]+)""")
# Of schema.org data: who sells the car, and what does not show it.
SELLERS = {"AutoDealer", "AutomotiveBusiness", "LocalBusiness", "Organization", "Person", "Store", "WebSite"}
NOT_THE_CAR = {"logo", "author", "publisher", "seller", "brand", "isSimilarTo", "isRelatedTo", "thumbnail"}
OTHER_SCREEN = "data-scraper-other-screen"  # set by `loading` on a <source> whose media query is not for this window
LINKS = {"a": ("href",), "link": ("href",), "meta": ("content",), "image": ("href", "xlink:href")}


def addresses_of(
    tag: Tag, attribute: str | None = None, path: str | None = None, stand_ins: Collection[str] = ()
) -> list[str]:
    """Return the addresses that one element stands for: a picture's largest version, or all that a script holds.

    `attribute` names the one that holds them, `path` the place in a script's JSON. `stand_ins` are values of `src`
    that several listings share: a picture shown until the real one is loaded.
    """
    if attribute:
        value = tag.get(attribute) or ""
        return _in_text(" ".join(value) if isinstance(value, list) else value, path)
    if tag.name == "script":
        return _in_script(tag.get_text(), path, is_linked_data="ld+json" in (tag.get("type") or ""))
    candidates = [tag]
    if picture := tag if tag.name == "picture" else tag.find_parent("picture"):
        sources = [source for source in picture.find_all("source") if not source.has_attr(OTHER_SCREEN)]
        candidates = [*sources, *picture.find_all("img")]
    choices = [
        (address, size, candidate.get("type"))
        for candidate in candidates
        for name, value in candidate.attrs.items()
        if isinstance(value, str) and (name.endswith("srcset") or not OTHER.fullmatch(name) and SRCSET.fullmatch(value))
        for address, size in parse_srcset(value)
    ]
    if large := next(filter(None, map(_large, candidates)), None):
        return [large]
    plain = next(filter(None, (_plain(candidate, stand_ins) for candidate in candidates)), None)
    readable = [choice for choice in choices if _is_decodable(choice[0], choice[2])]
    if readable:
        address, size, kind = max(readable, key=lambda choice: choice[1])
        # of two formats of one size, the one that every program reads
        is_avif = "avif" in (kind or "") or address.lower().endswith(".avif")
        return [plain] if is_avif and size == 1.0 and plain and _is_decodable(plain) else [address]
    if plain and (not choices or _is_decodable(plain)):
        return [plain]
    return [choices[0][0]] if choices else _background(tag) or next(filter(None, map(_odd, candidates)), [])


def is_bare(tag: Tag) -> bool:
    """Tell whether a picture without an address is one that should have one: neither a drawing nor shown otherwise."""
    beside = (tag.find_next_sibling(), tag.find_previous_sibling())
    is_in_noscript = any(other is not None and other.name == "noscript" and other.find("img") for other in beside)
    is_drawing = (tag.get("src") or "").startswith("data:image/svg")
    return tag.name in ("img", "picture", "amp-img") and not is_in_noscript and not is_drawing


def _large(tag: Tag) -> str | None:
    """Return the picture file that an attribute keeps for a full screen, or to which a small picture is a link."""
    names = [name for name in tag.attrs if LARGE.fullmatch(name) and not SMALL_SIZE.fullmatch(name)]
    kept = (_in_text(tag[name], None) for name in names if isinstance(tag[name], str))
    values = [found[0] for found in kept if len(found) == 1]
    link = tag.find_parent("a", href=True) if tag.name in ("img", "picture") else None
    # a page may have the file's name in its query (zoom.php?pic=7.jpg)
    if link and len(link.find_all("img")) == 1 and IMAGE_FILE.fullmatch(re.split("[?#]", link["href"].strip())[0]):
        values.append(link["href"].strip())
    return next((value for value in values if IMAGE_FILE.fullmatch(value) and _is_decodable(value)), None)


def _plain(tag: Tag, stand_ins: Collection[str]) -> str | None:
    """Return the address that an attribute gives by itself, without a choice of sizes."""
    own = _unknown(tag)
    names = LINKS.get(tag.name, (*LAZY_ATTRIBUTES, *filter(LIKELY.fullmatch, own), "src", *own))
    for name in names:
        value = tag.get(name)
        value = _unwrap(value) if isinstance(value, str) else ""
        if not is_address(value) or STAND_IN.fullmatch(value.rpartition("/")[2]):
            continue
        if name != "src" and not re.search("[/.]", value):  # data-lazy="true", data-image="2"
            continue
        if name == "src" and value in stand_ins or name in own and not IMAGE_FILE.fullmatch(value):
            continue
        return value
    shared = tag.get("src")
    return shared if shared in stand_ins and is_address(shared) else None


def _unknown(tag: Tag) -> dict[str, str]:
    """Return the attributes that may hold an address though nobody knows their names."""
    known = (*LAZY_ATTRIBUTES, "src")
    return {
        name: value.strip()
        for name, value in ({} if tag.name in LINKS else tag.attrs).items()
        if isinstance(value, str) and not (name in known or SMALL_SIZE.fullmatch(name) or OTHER.fullmatch(name))
    }


def _odd(tag: Tag) -> list[str]:
    """Return what an attribute holds whose name nobody knows: the address of no image file, or JSON with some."""
    values = list(filter(is_address, _unknown(tag).values()))
    files = (list(dict.fromkeys(_in_text(value, None))) for value in values if value.startswith(("{", "[")))
    addresses = ([value] for value in values if re.match(r"(https?:)?//[^\s/]+/|/\w", value))
    return next(filter(None, (*files, *addresses)), [])


def _unwrap(value: str) -> str:
    """Return an address without the `url()` of a style sheet around it; of several that are no drawing the densest."""
    if not (found := STYLE_URL.findall(value)):
        return value.strip()
    sizes = {url: (_is_decodable(url), float(size or 1)) for _, url, size in found if is_address(url)}
    return max(sizes, key=sizes.get, default="")


def _background(tag: Tag) -> list[str]:
    # as the browser reads it, without escapes, comes first
    styles = (tag.get(name) or "" for name in (BACKGROUND, "style", "data-style"))
    return list(filter(is_address, (_unwrap(style) for style in styles if STYLE_URL.search(style))))[:1]


def _is_decodable(address: str, kind: str | None = None) -> bool:
    extension = re.search(r"\.(\w+)$", address.partition("?")[0].lower())
    named = (kind or "").partition(";")[0].strip().lower().removeprefix("image/")
    return (named or (extension.group(1) if extension else "")).replace("heif", "heic") not in UNDECODABLE


def parse_srcset(text: str) -> list[tuple[str, float]]:
    """Return (address, width in pixels or density) for each candidate of a srcset; data: URIs are left out.

    As the HTML standard has it, a comma inside an address, as content networks write it, is a part of it.
    """
    choices = []
    for address, descriptor in re.findall(r"([^\s,](?:\S*[^\s,])?)([^,]*)", text):
        size = re.search(r"(\d*\.?\d+)[wx]\b", descriptor)
        if is_address(address):
            choices.append((address, float(size.group(1)) if size else 1.0))
    return choices


def is_address(text: str | None) -> bool:
    """Tell whether an attribute's value can be the address of a picture: not empty, and no data in itself."""
    text = (text or "").strip().lower()
    is_nothing = TEMPLATE.search(text) or text.rpartition("/")[2] in ("undefined", "null", "nan")  # a script's mistake
    return bool(text) and not is_nothing and not text.startswith(("data:", "blob:", "about:", "javascript:", "#"))


def _in_text(value: str, path: str | None) -> list[str]:
    value = value.strip()
    if value.startswith(("[", "{")):
        return _in_script(value, path, is_linked_data=False)
    if re.search(r"\s[\d.]+[wx]\s*(,|$)", value):
        return [max(parse_srcset(value), key=lambda choice: choice[1], default=("", 0))[0]]
    parts = [part for part in re.split(r"[\s,;|]+", value) if part]
    if len(parts) > 1 and all(map(IMAGE_FILE.fullmatch, parts)):
        return parts
    value = _unwrap(value)
    return [value] if is_address(value) else []


def _in_script(text: str, path: str | None, is_linked_data: bool) -> list[str]:
    values = list(read_json(text))
    if path:
        parts = [quoted or plain for _, quoted, plain in PATH_PART.findall(path.removeprefix("$"))]
        found = (list(dict.fromkeys(_follow(value, parts))) for value in values)
        return next(filter(None, found), [])
    is_linked_data |= any(isinstance(value, dict) and "@context" in value for value in values)
    addresses = [a for value in values for a in (_linked_images(value) if is_linked_data else image_files(value))]
    if not addresses and is_linked_data:  # broken beyond reading as a whole
        for piece in re.findall(r"[\"'](?:image|photo|contentUrl)[\"']\s*:\s*(\[[^\]]*\]|\"[^\"]*\"|\{[^}]*\})", text):
            addresses += re.findall(r"[\"']((?:https?:)?/[^\"'\s]+)[\"']", piece.replace("\\/", "/"))
    return list(dict.fromkeys(map(unescape, addresses)))


def read_json(text: str) -> Iterator[dict | list]:
    """Yield the values in the text of a script, whatever stands around them: `window.state = {…};`, CDATA.

    They may be JSON, with raw line breaks in strings or HTML entities instead of quotes, or objects of JavaScript.
    What stands as JSON within a text, as in `JSON.parse("…")` and as Next.js writes it, follows.
    """
    text = unescape(text) if "&quot;" in text else text
    texts: list[str] = []
    lists = defaultdict(list)  # as old scripts write them, one line for each photo
    for name, _, address in LIST_ENTRY.findall(text):
        lists[name].append(address)
    yield from lists.values()
    text = NEW_ARRAY.sub(r"[\1]", text)
    values, is_json = _decode_all(text)
    if not is_json:
        values += _decode_all(JAVASCRIPT.sub(lambda match: _as_json(match, texts), text))[0]
    for value in values:
        yield value
        texts += _texts(value)
    for nested in dict.fromkeys(filter(re.compile(r"[{\[]\s*[\"{\[]").search, texts)):
        yield from read_json(nested)


def _decode_all(text: str) -> tuple[list[dict | list], bool]:
    """Return the JSON values in a text, commas before a closing bracket forgiven, and whether all brackets are JSON."""
    text = re.sub(r",(\s*[}\]])", r"\1", text)
    decoder, position, values, failures = json.JSONDecoder(strict=False), 0, [], 0
    while failures < 200 and (match := re.compile(r"[{\[]").search(text, position)):
        try:
            value, position = decoder.raw_decode(text, match.start())
            values += [value] if value else []
        except (ValueError, RecursionError):
            position, failures = match.end(), failures + 1
    return values, not failures


LIST_ENTRY = re.compile(r"""([\w.$]+)(?:\[\d+\]\s*=|\.push\()\s*(['"])(.*?)\2""")  # pics[1] = "…", pics.push("…")
NEW_ARRAY = re.compile(r"""\bnew Array\(\s*(['"][^()]*)\)""")
# What JavaScript writes otherwise than JSON: texts, comments, names without quotes, what is not defined.
JAVASCRIPT = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)|/\*.*?\*/|//[^\n]*"""
    r"|(?P<name>[A-Za-z_$][\w$]*)(?=\s*:)|\b(?P<nothing>undefined|void 0)\b",
    re.DOTALL,
)
ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)


def _as_json(match: re.Match, literals: list[str]) -> str:
    """Return a piece of JavaScript as JSON has it, and note what texts say."""
    if text := match["text"]:

        def char(escape: re.Match) -> str:
            code, letter = escape[1] or escape[2], escape[3]
            return chr(int(code, 16)) if code else {"n": "\n", "t": "\t", "r": "\r"}.get(letter, letter)

        literals.append(ESCAPE.sub(char, text[1:-1]))
        return json.dumps(literals[-1])
    return f'"{match["name"]}"' if match["name"] else "null" if match["nothing"] else " "


def _parts(node: object) -> list:
    return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []


def walk(node: object) -> Iterator[object]:
    """Yield a JSON value and all that is in it."""
    yield node
    for part in _parts(node):
        yield from walk(part)


def _texts(node: object) -> Iterator[str]:
    return (part for part in walk(node) if isinstance(part, str))


def _follow(node: object, path: list[str]) -> Iterator[str]:
    """Yield the texts at a path: names of an object, numbers or * of a list; a list may also be passed over.

    An empty step stands for any depth.
    """
    if not path:
        yield from [node] if isinstance(node, str) else []
        for part in node if isinstance(node, list) else []:
            yield from _follow(part, path)
        return
    step, rest = path[0], path[1:]
    if not step:
        found = walk(node)
    elif isinstance(node, dict):
        found = [part for name, part in node.items() if step in (name, "*")]
    elif step == "*":
        found = _parts(node)
    elif step.isdigit():
        found = _parts(node)[int(step) :][:1]
    else:
        found, rest = _parts(node), path
    for part in found:
        yield from _follow(part, rest)


def image_files(node: object) -> list[str]:
    """Return every text of a JSON value that ends like an image file's address."""
    return [text for text in _texts(node) if IMAGE_FILE.fullmatch(text.strip())]


def _linked_images(node: object, is_image: bool = False) -> Iterator[str]:
    """Yield the pictures of schema.org data: what is under `image` or `photo`, and every ImageObject."""
    if isinstance(node, str):
        if is_image and is_address(node):
            yield node
    elif isinstance(node, list):
        for part in node:
            yield from _linked_images(part, is_image)
    elif isinstance(node, dict):
        kinds = node.get("@type") if isinstance(node.get("@type"), list) else [node.get("@type")]
        if is_image or "ImageObject" in kinds:
            yield from _linked_images(node.get("contentUrl") or node.get("url") or node.get("@list"), True)
        elif not SELLERS.intersection(map(str, kinds)):
            for key, part in node.items():
                if key not in NOT_THE_CAR:
                    yield from _linked_images(part, key in ("image", "images", "photo", "photos"))
