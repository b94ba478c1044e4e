"""Read a photo's format, size and decoding work from its first bytes, before anything is decoded.

A small JPEG of a thousand empty scans takes minutes, so neither bytes nor pixels measure the work. Metadata that the
picture does not need is left out. Imports nothing of the package: the scraper uses it.
"""

import contextlib
import os
import re
import struct
from dataclasses import dataclass

from PIL import features

# What is read: the suffix under which its bytes are kept, and how they begin.
_KNOWN = {
    "JPEG": ("jpg", rb"\xff\xd8\xff"),
    "PNG": ("png", rb"\x89PNG\r\n\x1a\n"),
    "WEBP": ("webp", rb"RIFF....WEBP"),
    "GIF": ("gif", rb"GIF8[79]a"),
    "BMP": ("bmp", rb"BM"),
    "TIFF": ("tif", rb"II[*+]\0|MM\0[*+]"),
    "AVIF": ("avif", rb"....ftyp(?:.{4,32})?avi[fs]"),
    "HEIF": ("heic", rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)"),
}
FORMATS = {name: suffix for name, (suffix, _) in _KNOWN.items()}
_SHOWN_BY = (b"JFIF\0", b"Adobe", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")  # colour model and orientation
_SEGMENTS = 1_000  # of a JPEG; a phone's photo has some dozens
_CHUNKS = 20_000  # of a PNG; written in pieces of 8 kB, a picture of 50 MB has 6,400
_SCANNED_PIXELS = 1_000_000_000  # pixels × scans of a JPEG: two seconds of work
_PLAIN_WORK = 100_000_000  # of these, what is decoded in this process: a fifth of a second
_PLAIN_PIXELS = 4_000_000  # of a PNG or WebP
_PLAIN_TEXT = 65_536  # bytes of a text block that may hold the orientation
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")  # neither a stuffed byte nor a restart marker nor padding
RESAVE = "save it as a JPEG and try again"
FETCH_AGAIN = "copy or download it again"


def _most_pixels() -> int:
    given = os.environ.get("CARSPOTTER_MEGAPIXELS", "64")
    with contextlib.suppress(ValueError, OverflowError):  # no number, or infinity
        if (pixels := int(1e6 * float(given))) > 0:
            return pixels
    raise ValueError(f"CARSPOTTER_MEGAPIXELS is {given!r}; give millions of pixels, as in CARSPOTTER_MEGAPIXELS=64")


@dataclass(frozen=True)
class Limits:
    """What one photo may cost: file size, pixels, and in a child process CPU seconds and bytes of memory."""

    bytes: int = 50_000_000
    pixels: int = _most_pixels()
    seconds: float = 4.0
    memory: int = 2**30


LIMITS = Limits()


class Refusal(Exception):
    """A photo that is not decoded, and why; `kind` as in `decoding.UnreadablePhoto`."""

    def __init__(self, reason: str, kind: str = "damaged"):
        super().__init__(reason)
        self.reason, self.kind = reason, kind


@dataclass(frozen=True)
class Header:
    """What is read before decoding: content without needless metadata; `plain` means that little work is certain."""

    format: str
    content: bytes
    size: tuple[int, int] | None = None
    plain: bool = False
    scan_end: int = 0
    progressive: bool = False


def read_header(content: bytes, limits: Limits) -> Header:
    """Recognise the format by its first bytes and read its header. Raises Refusal for what is too much work."""
    head = content[:64]
    image_format = next((name for name, (_, magic) in _KNOWN.items() if re.match(magic, head, re.DOTALL)), None)
    if image_format is None:
        raise Refusal(_what_it_is_instead(content), "format")
    if image_format == "AVIF" and not features.check("avif"):
        raise Refusal("an AVIF photo; `pip install 'pillow>=11.3'` reads it, or save it as a JPEG", "library")
    readers = {"JPEG": _read_jpeg, "PNG": _read_png, "WEBP": _read_webp}
    try:
        header = readers.get(image_format, lambda content: Header(image_format, content))(content)
    except (struct.error, IndexError):
        raise Refusal(f"cannot be decoded: its header is cut off or damaged; {FETCH_AGAIN}") from None
    if header.size:
        check_size(header.size, limits)
    return header


def check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.pixels:
        raise Refusal(
            f"{width}×{height} pixels are more than the limit of {limits.pixels:,}; make it smaller, or allow more "
            f"with CARSPOTTER_MEGAPIXELS={width * height // 1_000_000 + 1}",
            "large",
        )
    if not width * height:
        raise Refusal("cannot be decoded: it has no pixels")


def _what_it_is_instead(content: bytes) -> str:
    head = content.lstrip()[:512].lower()
    if not head:
        return "the file is empty"
    if b"<svg" in head:
        return "an SVG drawing, not a photo"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page, not a photo"
    return f"not a photo in a known format ({', '.join(FORMATS)}), or a damaged one"


def _read_jpeg(content: bytes) -> Header:
    """Keep a JPEG's tables, frame, scans and what says how to show it; judge its scans."""
    kept, at, size, scans, scan_end = [b"\xff\xd8"], 2, None, 0, 0
    once, progressive, unusual = set(), False, False
    if len(content) > 1_000_000 and content.count(b"\xff") > len(content) // 8:
        raise Refusal(f"cannot be decoded: a JPEG made of padding; {RESAVE}", "large")
    missing: dict[int, list[int]] = {}  # component -> for each of its 64 coefficients, the lower bits still to come
    for _ in range(_SEGMENTS):
        found = _MARKER.search(content, at)
        code = found[1][0] if found else 0xD9
        if code == 0xD9:
            break
        at = found.end()
        if code == 0xD8:
            continue
        length = struct.unpack_from(">H", content, at)[0]
        segment = content[found.start() : at + max(length, 2)]
        at += max(length, 2)
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            if size:
                raise Refusal(f"cannot be decoded: two JPEG frames in one file; {RESAVE}")
            if code >= 0xC9:
                raise Refusal(
                    "a JPEG with arithmetic coding, which no browser shows; save it as an ordinary one", "format"
                )
            height, width, components = struct.unpack_from(">HHB", segment, 5)
            size, progressive, unusual = (width, height), code == 0xC2, code > 0xC2
            missing = {segment[10 + 3 * number]: [255] * 64 for number in range(components)}
        if code == 0xDA:
            scans += 1
            components = segment[4]
            first, last, bits = segment[5 + 2 * components : 8 + 2 * components]
            for number in range(components):
                if segment[5 + 2 * number] in missing:
                    coefficients = missing[segment[5 + 2 * number]]
                    coefficients[first : last + 1] = [bits & 15] * len(coefficients[first : last + 1])
            following = _MARKER.search(content, at)
            end = following.start() if following else len(content)
            kept.append(segment + content[at:end].rstrip(b"\xff"))
            at, scan_end = end, len(kept)
        elif code in (0xC4, 0xCC, 0xDB, 0xDC, 0xDD) or 0xC0 <= code <= 0xCF:
            kept.append(segment)
        else:
            purpose = next((word for word in _SHOWN_BY if segment[4:].startswith(word)), None)
            if purpose and purpose not in once:
                once.add(purpose)
                kept.append(segment)
    else:
        raise Refusal(f"cannot be decoded: more than {_SEGMENTS:,} JPEG segments; {RESAVE}", "large")
    if not size or not scans:
        raise Refusal(f"cannot be decoded: cut off before its first pixel, or damaged; {FETCH_AGAIN}")
    work = size[0] * size[1] * scans
    if work > _SCANNED_PIXELS:
        raise Refusal(f"{scans} JPEG scans of {size[0]}×{size[1]} pixels are too much work; {RESAVE}", "large")
    if any(any(coefficients) for coefficients in missing.values()):
        raise Refusal(f"cut off: the last of its JPEG scans are missing; {FETCH_AGAIN}")
    whole = b"".join(kept[:scan_end])
    plain = not unusual and work <= _PLAIN_WORK
    return Header("JPEG", whole + b"\xff\xd9", size, plain, len(whole), progressive)


def _read_png(content: bytes) -> Header:
    """Keep a PNG's pixels, transparency and orientation."""
    kept, at = [content[:8]], 8
    if content[12:16] != b"IHDR":
        raise Refusal(f"cannot be decoded: a PNG without its header; {FETCH_AGAIN}, or {RESAVE}")
    size, depth = struct.unpack_from(">II", content, 16), content[24]
    for _ in range(_CHUNKS):
        if at + 8 > len(content):
            break
        length, kind = struct.unpack_from(">I4s", content, at)
        chunk = content[at : at + 12 + length]
        at += 12 + length
        orients = kind == b"eXIf" or (
            kind in (b"tEXt", b"iTXt") and chunk[8:].startswith((b"XML:com.adobe.xmp\0\0", b"Raw profile type exif"))
        )
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or (orients and length <= _PLAIN_TEXT):
            kept.append(chunk)
        if kind == b"IEND":
            break
    else:
        raise Refusal(f"cannot be decoded: more than {_CHUNKS:,} PNG chunks; {RESAVE}", "large")
    plain = depth <= 8 and size[0] * size[1] <= _PLAIN_PIXELS and len(kept) < 2_000
    return Header("PNG", b"".join(kept), size, plain)


def _read_webp(content: bytes) -> Header:
    kind, animated = content[12:16], False
    if kind == b"VP8X":
        animated = bool(content[20] & 2)
        size = tuple(1 + int.from_bytes(content[start : start + 3], "little") for start in (24, 27))
    elif kind == b"VP8L":
        packed = struct.unpack_from("<I", content, 21)[0]
        size = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    else:
        size = tuple(side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
    return Header("WEBP", content, size, not animated and size[0] * size[1] <= _PLAIN_PIXELS)
