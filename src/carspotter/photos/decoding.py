"""Decode photos within bounds of time and memory: the one decoder of import, scraper, curation and photo check.

A file's cost is neither its bytes nor its pixels: a small JPEG of a thousand empty scans takes minutes. So each header
is read once, here, and what the picture does not need (colour profiles, comments, thumbnails) is dropped before Pillow
sees it. JPEG, PNG and WebP files whose header proves that they are little work are decoded in this process; all others
in a child process with limits on CPU time and memory, which can be killed, as a thread cannot.

This module imports nothing of the package: the scraper uses it, and the child processes run it as a script.
"""

import atexit
import contextlib
import io
import json
import os
import queue
import re
import signal
import struct
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageChops, ImageFile, ImageOps, features

try:
    import resource
except ImportError:  # Windows: the time is limited there, the memory is not
    resource = None

# What is read, and the suffix under which its bytes are kept.
FORMATS = {
    "JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif",
    "HEIF": "heic",
}  # fmt: skip
# Raise this by hand when the pixels change that every model sees: arrays on disk and exported models depend on it.
PREPROCESSING = "squash-bilinear-draft1x-white-2"
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels

_MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb"....ftyp(?:.{4,32})?avi[fs]",
    "HEIF": rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)",
}
_SEGMENTS = 1_000  # of a JPEG; a phone's photo has some dozens
_CHUNKS = 20_000  # of a PNG; written in pieces of 8 kB, a picture of 50 MB has 6,400
_SCANNED_PIXELS = 1_000_000_000  # pixels × scans of a JPEG: two seconds of work
_PLAIN_WORK = 100_000_000  # of these, what is decoded in this process: a fifth of a second
_PLAIN_PIXELS = 4_000_000  # of a PNG or WebP
_PLAIN_TEXT = 65_536  # bytes of a text block that may hold the orientation
_TILE_PIXELS = 16_000_000
_RETIRING_PIXELS = 8_000_000  # a child that decoded as much may keep the memory: it is replaced
_CHILDREN = max(2, min(4, os.cpu_count() or 1))
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")  # neither a stuffed byte nor a restart marker nor padding
_NOISES = bytes(7 + 97 * number % 239 for number in range(96)), bytes(96)  # scan data that no photo ends with
_RESAVE = "save it as a JPEG and try again"

# Our own limit takes the place of the one at which Pillow warns, and a damaged EXIF block is passed over.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)


@dataclass(frozen=True)
class Limits:
    """What one photo may cost: bytes of its file, pixels, and seconds of CPU time and bytes of memory in a child."""

    bytes: int = 50_000_000
    pixels: int = int(1e6 * float(os.environ.get("CARSPOTTER_MEGAPIXELS", 64)))
    seconds: float = 4.0
    memory: int = 2**30


@dataclass(frozen=True)
class Facts:
    """What a photo's header says: one of FORMATS, and the size in pixels as stored, before EXIF rotation."""

    format: str
    width: int
    height: int


class UnreadablePhoto(ValueError):
    """A file that cannot be used as a photo; the message names the file, `reason` says why and what to do.

    `kind`: "damaged"; "large", beyond one of the Limits; "format", not a photo in one of FORMATS; "library", a format
    that needs a package which is not installed.
    """

    def __init__(self, name: str, reason: str, kind: str = "damaged"):
        super().__init__(f"{name}: {reason}")
        self.reason, self.kind = reason, kind


class _Refusal(Exception):
    def __init__(self, reason: str, kind: str = "damaged"):
        super().__init__(reason)
        self.reason, self.kind = reason, kind


@dataclass(frozen=True)
class _Header:
    """What is read before decoding: `content` without what the pixels do not need, `plain` if little work is certain.

    `scan_end`: of a JPEG, where the data of its last scan ends in `content`; `progressive`: whether it is.
    """

    format: str
    content: bytes
    size: tuple[int, int] | None = None
    plain: bool = False
    scan_end: int = 0
    progressive: bool = False


def decode(
    source: Path | bytes | BinaryIO,
    at_least: int | None = None,
    square: int | None = None,
    verify: bool = True,
    limits: Limits = Limits(),
) -> tuple[Image.Image, Facts]:
    """Decode the first frame of a photo: upright by its EXIF orientation, RGB, white where it is transparent.

    `at_least`: pixels; a JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size, the coarsest that leaves at least
    twice `at_least` on each side. `square`: resize to so many pixels on each side, antialiased bilinear. `verify`: see
    that the pixels of a JPEG are all there, which takes a second decoding; without it a missing part is grey.
    Colour profiles are ignored. 16-bit grey keeps its upper 8 bits; 12-bit and floating-point TIFF pixels are scaled
    from their range. Raises UnreadablePhoto for what is damaged, costs more than `limits` or is not one of FORMATS.
    """
    name = str(source) if isinstance(source, str | os.PathLike) else str(getattr(source, "name", "photo"))
    try:
        header = _read_header(_read(source, limits), limits)
        if header.plain:
            return _decode_here(header, at_least, square, verify, limits)
        return _children.decode(header, at_least, square, verify, limits)
    except _Refusal as refusal:
        raise UnreadablePhoto(name, refusal.reason, refusal.kind) from refusal.__cause__


def inspect(source: Path | bytes | BinaryIO, limits: Limits = Limits()) -> Facts:
    """Decode a photo whole, to see that it can be decoded, and keep only its facts. Raises as `decode`."""
    return decode(source, at_least=1, square=1, limits=limits)[1]


def is_plain(content: bytes, limits: Limits = Limits()) -> bool:
    """Return whether `decode` is certain to answer within a fraction of a second, without a child process."""
    try:
        return _read_header(content, limits).plain
    except _Refusal:
        return True


def _read(source: Path | bytes | BinaryIO, limits: Limits) -> bytes:
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            return _read(file, limits)
    if hasattr(source, "read"):
        source = source.read(limits.bytes + 1)
    if len(source) > limits.bytes:
        raise _Refusal(f"larger than the limit of {limits.bytes:,} bytes; {_RESAVE}", "large")
    return bytes(source)


def _read_header(content: bytes, limits: Limits) -> _Header:
    """Recognise the format by its first bytes and read its header. Raises _Refusal for what is too much work."""
    image_format = next((name for name, magic in _MAGIC.items() if re.match(magic, content[:64], re.DOTALL)), None)
    if image_format is None:
        raise _Refusal(_what_it_is_instead(content), "format")
    if image_format == "AVIF" and not features.check("avif"):
        raise _Refusal("an AVIF photo; `pip install 'pillow>=11.3'` reads it, or save it as a JPEG", "library")
    readers = {"JPEG": _read_jpeg, "PNG": _read_png, "WEBP": _read_webp}
    try:
        header = readers.get(image_format, lambda content: _Header(image_format, content))(content)
    except (struct.error, IndexError):
        raise _Refusal(f"cannot be decoded: its header is cut off or damaged; {_FETCH_AGAIN}") from None
    if header.size:
        _check_size(header.size, limits)
    return header


_FETCH_AGAIN = "copy or download it again"


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.pixels:
        raise _Refusal(
            f"{width}×{height} pixels are more than the limit of {limits.pixels:,}; make it smaller, or allow more "
            f"with CARSPOTTER_MEGAPIXELS={width * height // 1_000_000 + 1}",
            "large",
        )
    if not width * height:
        raise _Refusal("cannot be decoded: it has no pixels")


def _what_it_is_instead(content: bytes) -> str:
    head = content[:512].lstrip().lower()
    if not head:
        return "the file is empty"
    if b"<svg" in head:
        return "an SVG drawing, not a photo"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page, not a photo"
    return f"not a photo in a known format ({', '.join(FORMATS)}), or a damaged one"


def _read_jpeg(content: bytes) -> _Header:
    """Keep a JPEG's tables, frame, scans, and of its metadata what says how to show it; judge its scans."""
    kept, at, size, scans, scan_end = [b"\xff\xd8"], 2, None, 0, 0
    once, progressive, unusual = set(), False, False
    if len(content) > 1_000_000 and content.count(b"\xff") > len(content) // 8:
        raise _Refusal(f"cannot be decoded: a JPEG made of padding; {_RESAVE}", "large")
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
                raise _Refusal(f"cannot be decoded: two JPEG frames in one file; {_RESAVE}")
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
        raise _Refusal(f"cannot be decoded: more than {_SEGMENTS:,} JPEG segments; {_RESAVE}", "large")
    if not size or not scans:
        raise _Refusal(f"cannot be decoded: cut off before its first pixel, or damaged; {_FETCH_AGAIN}")
    work = size[0] * size[1] * scans
    if work > _SCANNED_PIXELS:
        raise _Refusal(f"{scans} JPEG scans of {size[0]}×{size[1]} pixels are too much work; {_RESAVE}", "large")
    if any(any(coefficients) for coefficients in missing.values()):
        raise _Refusal(f"cut off: the last of its JPEG scans are missing; {_FETCH_AGAIN}")
    whole = b"".join(kept[:scan_end])
    plain = not unusual and work <= _PLAIN_WORK
    return _Header("JPEG", whole + b"\xff\xd9", size, plain, len(whole), progressive)


_SHOWN_BY = (b"JFIF\0", b"Adobe", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")  # colour model and orientation


def _read_png(content: bytes) -> _Header:
    """Keep a PNG's pixels, transparency and orientation; its other metadata may be large without harm."""
    kept, at = [content[:8]], 8
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
        raise _Refusal(f"cannot be decoded: more than {_CHUNKS:,} PNG chunks; {_RESAVE}", "large")
    plain = depth <= 8 and size[0] * size[1] <= _PLAIN_PIXELS and len(kept) < 2_000
    return _Header("PNG", b"".join(kept), size, plain)


def _read_webp(content: bytes) -> _Header:
    kind, animated = content[12:16], False
    if kind == b"VP8X":
        animated = bool(content[20] & 2)
        size = tuple(1 + int.from_bytes(content[start : start + 3], "little") for start in (24, 27))
    elif kind == b"VP8L":
        packed = struct.unpack_from("<I", content, 21)[0]
        size = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    else:
        size = tuple(side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
    return _Header("WEBP", content, size, not animated and size[0] * size[1] <= _PLAIN_PIXELS)


def _decode_here(
    header: _Header, at_least: int | None, square: int | None, verify: bool, limits: Limits
) -> tuple[Image.Image, Facts]:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have switched it on: half a car is not a photo
    try:
        image, size = _load(header.format, header.content, at_least, limits)
        if verify and header.format == "JPEG":
            _check_whole(header, limits)
        image = _to_rgb(image)
        if square:
            image = image.resize((square, square), Image.Resampling.BILINEAR)
    except (_Refusal, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise _Refusal(f"cannot be decoded: its header is cut off or damaged; {_FETCH_AGAIN}, or {_RESAVE}") from None
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly everything there is
        said = " ".join(str(error).split())
        raise _Refusal(f"cannot be decoded: {said}; {_FETCH_AGAIN}, or {_RESAVE}") from error
    return image, Facts(header.format, *size)


def _load(
    image_format: str, content: bytes, at_least: int | None, limits: Limits
) -> tuple[Image.Image, tuple[int, int]]:
    if image_format == "HEIF":
        try:
            import pillow_heif  # noqa: PLC0415 - an extra
        except ImportError:
            raise _Refusal(
                "a HEIC photo, as iPhones take them; `pip install 'carspotter[heic]'` (pillow-heif) reads it, or save "
                "it as a JPEG",
                "library",
            ) from None
        pillow_heif.register_heif_opener()
    image = Image.open(io.BytesIO(content), formats=[image_format])
    size = image.size
    _check_size(size, limits)
    if image_format == "TIFF":
        if image.tag_v2.get(254, 0) & 1:  # NewSubfileType: a reduced copy of another picture in the file
            raise _Refusal(f"a camera's raw file, of which only a thumbnail could be read; {_RESAVE}", "format")
        sides = [image.tag_v2.get(tag, 1) for tag in (322, 323)]  # TileWidth, TileLength
        if sides[0] * sides[1] > _TILE_PIXELS:
            raise _Refusal(f"TIFF tiles of {sides[0]}×{sides[1]} pixels are too large; {_RESAVE}", "large")
    if at_least and image_format == "JPEG":
        image.draft(None, (2 * at_least, 2 * at_least))
    image.load()
    return image, size


def _check_whole(header: _Header, limits: Limits) -> None:
    """Raise _Refusal when pixels of a JPEG are missing or shifted; its end marker says nothing about that.

    libjpeg paints what is missing grey and does not tell. But data appended to the last scan are decoded if the scan
    was not complete, and then change pixels; and a scan's last bytes change pixels when they are replaced, unless
    damage before them has shifted the picture, so that they are left over.
    """
    # A progressive scan of fine detail does not show at a smaller scale.
    at_least = None if header.progressive else 1
    whole = _load("JPEG", header.content, at_least, limits)[0]
    width, height = whole.size

    def first_change(cut: int) -> tuple[int, int] | None:
        """Return left and top of the pixels that change when noise takes the place of the last `cut` bytes."""
        for noise in _NOISES:
            content = header.content[: header.scan_end - cut] + noise + b"\xff\xd9"
            with contextlib.suppress(OSError):  # noise may be no code at all
                box = ImageChops.difference(whole, _load("JPEG", content, at_least, limits)[0]).getbbox()
                return box and box[:2]
        return None

    if start := first_change(0):
        left, top = start
        last_row = height - top <= 16 * height / header.size[1]
        share = max(0.01, (height - top) * (width - left * last_row) / (width * height))
        raise _Refusal(f"cut off: {share:.0%} of its pixels are missing or shifted; {_FETCH_AGAIN}")
    # The bytes of several blocks, for one block's last bytes are fine detail, or outside the picture.
    several = 32 + 8 * 64 * header.scan_end // (header.size[0] * header.size[1])
    if not header.progressive and not first_change(several):
        raise _Refusal(f"damaged: bytes in the middle are lost or wrong, the rest is shifted; {_FETCH_AGAIN}")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Turn a photo upright by its EXIF orientation and into RGB; transparent pixels show a white background."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    with contextlib.suppress(Exception):  # a damaged EXIF block costs the rotation, not the photo
        if image.getexif().get(0x0112, 1) != 1:  # most photos stand upright: they are spared a copy
            image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(ground, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey pixels of more than 8 bits from their range to 0 … 255; Pillow would clip them.

    A TIFF says its range by MaxSampleValue or by its bits per sample. Floating-point pixels within 0 … 1 or 0 … 255 are
    taken for such; other ranges are stretched from the smallest to the largest value.
    """
    import numpy as np  # noqa: PLC0415 - few photos need it, and a child process starts quicker without

    tags = getattr(image, "tag_v2", {})
    grey = np.asarray(image)
    low, high = 0, tags.get(281, (2 ** tags.get(258, (16,))[0] - 1,))[0]  # MaxSampleValue, BitsPerSample
    if image.mode == "F" or high > 65535 or image.mode == "I" and grey.max(initial=0) > 65535:
        finite = grey[np.isfinite(grey)]
        low, high = (finite.min(), finite.max()) if finite.size else (0, 1)
        if low >= 0 and high <= 255:
            low, high = 0, 1 if high <= 1 else 255
    if (low, high) == (0, 65535) and image.mode != "F":
        eight = (np.clip(grey, 0, 65535) >> 8).astype(np.uint8)
    else:
        scaled = np.subtract(grey, low, dtype=np.float32) * (255 / max(high - low, 1e-30))
        eight = np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8)
    orientation = image.getexif().get(0x0112)
    image = Image.fromarray(eight)
    if orientation:
        image.getexif()[0x0112] = orientation
    return image


class _Children:
    """A few child processes that decode one photo at a time each; one that takes too long is killed and replaced."""

    def __init__(self):
        self.idle: queue.LifoQueue[subprocess.Popen | None] = queue.LifoQueue()
        for _ in range(_CHILDREN):
            self.idle.put(None)

    def decode(
        self, header: _Header, at_least: int | None, square: int | None, verify: bool, limits: Limits
    ) -> tuple[Image.Image, Facts]:
        job = {"header": vars(header) | {"content": len(header.content)}, "limits": vars(limits)}
        job = json.dumps(job | {"options": [at_least, square, verify]}).encode() + b"\n"
        child = self.idle.get()
        answer, pixels = {}, b""
        try:
            if child is None or child.poll() is not None:
                child = _start_child()
            # A machine may be busy with other work: the time that passes is bounded more generously than CPU time.
            timer = threading.Timer(4 * limits.seconds, child.kill)
            timer.daemon = True
            timer.start()
            with contextlib.suppress(OSError, ValueError):  # of one that is killed, or crashes
                child.stdin.write(job)
                child.stdin.write(header.content)
                child.stdin.flush()
                answer = json.loads(child.stdout.readline())
                pixels = child.stdout.read(answer.get("bytes", 0))
            timer.cancel()
            if len(pixels) < answer.get("bytes", 0):
                answer = {}
            if answer.get("retire", not answer):
                _end_child(child)
                child = None
        finally:
            self.idle.put(child)
        if not answer:
            seconds = f"it takes more than {limits.seconds:g} seconds, or its decoder crashes"
            raise _Refusal(f"too much work to decode: {seconds}; {_RESAVE}", "large")
        if "reason" in answer:
            raise _Refusal(answer["reason"], answer["kind"])
        return Image.frombytes("RGB", answer["size"], pixels), Facts(*answer["facts"])

    def close(self) -> None:
        while not self.idle.empty():
            if child := self.idle.get():
                _end_child(child)


def _start_child() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # its threads would reserve the memory that is limited here
    )


def _end_child(child: subprocess.Popen) -> None:
    child.kill()
    with contextlib.suppress(OSError), child:  # closes the pipes and waits
        pass


def _answer_jobs() -> None:
    """Decode what comes in at the standard input until it ends: the main loop of a child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; the input ends with it
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints does not print into an answer
    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        content = sys.stdin.buffer.read(job["header"]["content"])
        limits, pixels = Limits(**job["limits"]), b""
        _limit_resources(limits)
        try:
            image, facts = _decode_here(_Header(**job["header"] | {"content": content}), *job["options"], limits)
            pixels = image.tobytes()
            answer = {"size": image.size, "facts": list(vars(facts).values()), "bytes": len(pixels)}
            answer["retire"] = facts.width * facts.height > _RETIRING_PIXELS
        except _Refusal as refusal:
            answer = {"reason": refusal.reason, "kind": refusal.kind}
        except MemoryError:
            reason = f"needs more than the limit of {limits.memory:,} bytes of memory to decode; {_RESAVE}"
            answer = {"reason": reason, "kind": "large", "retire": True}
        answers.write(json.dumps(answer).encode() + b"\n" + pixels)
        answers.flush()


def _limit_resources(limits: Limits) -> None:
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime + limits.seconds + 1),  # whole seconds
    }
    with contextlib.suppress(OSError):  # only Linux says how much address space is in use, and limits it
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        wanted[resource.RLIMIT_AS] = pages * resource.getpagesize() + limits.memory
    for limit, soft in wanted.items():
        hard = resource.getrlimit(limit)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _renew_children() -> None:
    global _children
    _children = _Children()


_renew_children()
atexit.register(lambda: _children.close())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_children)  # two processes must not share one child's pipes

if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(5)  # ordinary photos, decoded in the parent, go first
    _answer_jobs()
