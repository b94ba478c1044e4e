"""Decode photos within bounds of time and memory: the one decoder of import, scraper, curation and photo check.

Files whose header proves that they are little work are decoded in this process; others in a child process with limits
on CPU time and memory, which can be killed. Imports only `headers`: the scraper uses this, child processes run it.
"""

import atexit
import contextlib
import io
import json
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image, ImageChops, ImageFile

from carspotter.photos.headers import FETCH_AGAIN, LIMITS, RESAVE, Header, Limits, Refusal, check_size, read_header
from carspotter.photos.headers import FORMATS as FORMATS

try:
    import resource
except ImportError:  # Windows: the time is limited there, the memory is not
    resource = None

# Raise this by hand when the pixels change that every model sees: arrays on disk and exported models depend on it.
PREPROCESSING = "squash-bilinear-draft1x-white-2"
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels

_TILE_PIXELS = 16_000_000
_RETIRING_PIXELS = 8_000_000  # a child that decoded as much may keep the memory: it is replaced
_CHILDREN = max(2, min(4, os.cpu_count() or 1))
_TURNS = (  # what turns a photo upright, by its EXIF orientation from 2 to 8
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_NOISES = bytes(7 + 97 * number % 239 for number in range(96)), bytes(96)  # scan data that no photo ends with

# Our own limit takes the place of Pillow's, and what it says of damaged metadata is passed over.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")


class Facts(NamedTuple):
    """A photo's format, one of FORMATS, and its size in pixels as stored, before EXIF rotation."""

    format: str
    width: int
    height: int


class UnreadablePhoto(ValueError):
    """A file that cannot be used as a photo; `reason` says why and what to do.

    `kind`: "damaged", "large" (beyond Limits), "format" (not one of FORMATS) or "library" (a package is missing).
    """

    def __init__(self, name: str, reason: str, kind: str = "damaged"):
        super().__init__(f"{name}: {reason}")
        self.reason, self.kind = reason, kind


def decode(
    source: Path | bytes | BinaryIO,
    at_least: int | None = None,
    square: int | None = None,
    verify: bool = True,
    limits: Limits = LIMITS,
) -> tuple[Image.Image, Facts]:
    """Decode the first frame of a photo: upright by its EXIF orientation, RGB, white where it is transparent.

    `at_least`: pixels; a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size while twice that is left on each side.
    `square`: resize to that many pixels on each side, antialiased bilinear. `verify`: check by a second decoding that
    no pixels of a JPEG are missing; otherwise they are grey. Raises UnreadablePhoto.
    """
    name = str(source) if isinstance(source, str | os.PathLike) else str(getattr(source, "name", "photo"))
    try:
        header = read_header(_read(source, limits), limits)
        return (_decode_here if header.plain else _children.decode)(header, limits, at_least, square, verify)
    except Refusal as refusal:
        raise UnreadablePhoto(name, refusal.reason, refusal.kind) from refusal.__cause__


def inspect(source: Path | bytes | BinaryIO, limits: Limits = LIMITS) -> Facts:
    """Decode a photo whole and return only its facts. Raises UnreadablePhoto."""
    return decode(source, at_least=1, square=1, limits=limits)[1]


def is_plain(content: bytes) -> bool:
    """Return whether `decode` is certain to answer within a fraction of a second, without a child process."""
    try:
        return read_header(content, LIMITS).plain
    except Refusal:
        return True


def _read(source: Path | bytes | BinaryIO, limits: Limits) -> bytes:
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            return _read(file, limits)
    if hasattr(source, "read"):
        source = source.read(limits.bytes + 1)
    if len(source) > limits.bytes:
        raise Refusal(f"larger than the limit of {limits.bytes:,} bytes; {RESAVE}", "large")
    return bytes(source)


def _decode_here(
    header: Header, limits: Limits, at_least: int | None = None, square: int | None = None, verify: bool = True
) -> tuple[Image.Image, Facts]:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have switched it on: half a car is not a photo
    try:
        image, size = _load(header.format, header.content, at_least, limits)
        if verify and header.format == "JPEG":
            _check_whole(header, limits)
        image = _to_rgb(image)
        if square:
            image = image.resize((square, square), Image.Resampling.BILINEAR)
    except (Refusal, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise Refusal(f"cannot be decoded: its header is cut off or damaged; {FETCH_AGAIN}, or {RESAVE}") from None
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly everything there is
        said = " ".join(str(error).split())
        raise Refusal(f"cannot be decoded: {said}; {FETCH_AGAIN}, or {RESAVE}") from error
    return image, Facts(header.format, *size)


def _load(
    image_format: str, content: bytes, at_least: int | None, limits: Limits
) -> tuple[Image.Image, tuple[int, int]]:
    if image_format == "HEIF":
        try:
            import pillow_heif  # noqa: PLC0415 - an extra
        except ImportError:
            raise Refusal(
                "a HEIC photo, as iPhones take them; `pip install 'carspotter[heic]'` (pillow-heif) reads it, or save "
                "it as a JPEG",
                "library",
            ) from None
        pillow_heif.register_heif_opener()
    image = Image.open(io.BytesIO(content), formats=[image_format])
    size = image.size
    check_size(size, limits)
    if image_format == "TIFF":
        if image.tag_v2.get(254, 0) & 1:  # NewSubfileType: a reduced copy of another picture in the file
            raise Refusal(f"a camera's raw file, of which only a thumbnail could be read; {RESAVE}", "format")
        sides = [image.tag_v2.get(tag, 1) for tag in (322, 323)]  # TileWidth, TileLength
        if sides[0] * sides[1] > _TILE_PIXELS:
            raise Refusal(f"TIFF tiles of {sides[0]}×{sides[1]} pixels are too large; {RESAVE}", "large")
    if at_least and image_format == "JPEG":
        image.draft(None, (2 * at_least, 2 * at_least))
    image.load()
    return image, size


def _check_whole(header: Header, limits: Limits) -> None:
    """Raise Refusal when pixels of a JPEG are missing or shifted; its end marker says nothing about that.

    libjpeg paints missing pixels grey without an error. Data appended to an incomplete last scan change pixels;
    replacing the last bytes of a complete scan changes pixels unless damage before them has shifted the picture.
    """
    # A progressive scan of fine detail does not show at a smaller scale.
    at_least = None if header.progressive else 1
    whole = _load("JPEG", header.content, at_least, limits)[0]
    width, height = whole.size

    def first_change(cut: int) -> tuple[int, int] | None:
        """Return left and top of the pixels that change when noise takes the place of the last `cut` bytes."""
        kept = header.content[: header.scan_end - cut]
        if not cut and (markers := re.findall(rb"\xff([\xd0-\xd7])", kept)):
            kept += bytes([0xFF, 0xD0 + (markers[-1][0] + 1) % 8])  # a decoder waits for it at an interval's end
        for noise in _NOISES:
            content = kept + noise + b"\xff\xd9"
            with contextlib.suppress(OSError):  # noise may be no code at all
                box = ImageChops.difference(whole, _load("JPEG", content, at_least, limits)[0]).getbbox()
                return box and box[:2]
        return None

    if start := first_change(0):
        left, top = start
        last_row = height - top <= 16 * height / header.size[1]
        share = max(0.01, (height - top) * (width - left * last_row) / (width * height))
        raise Refusal(f"cut off: {share:.0%} of its pixels are missing or shifted; {FETCH_AGAIN}")
    # The bytes of several blocks, for one block's last bytes are fine detail, or outside the picture.
    several = 32 + 8 * 64 * header.scan_end // (header.size[0] * header.size[1])
    if not header.progressive and not first_change(several):
        raise Refusal(f"damaged: bytes in the middle are lost or wrong, the rest is shifted; {FETCH_AGAIN}")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Turn a photo upright and into RGB; transparent pixels show a white background."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF; turning it loses them
    with contextlib.suppress(Exception):  # a damaged EXIF block costs the rotation, not the photo
        # Pillow's own `exif_transpose` also writes the block anew, and fails where another value of it is odd.
        if (orientation := image.getexif().get(0x0112)) in range(2, 9):
            image = image.transpose(_TURNS[orientation - 2])
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image, tags)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(ground, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image, tags: Mapping) -> Image.Image:
    """Scale grey pixels of more than 8 bits to 0 … 255, by a TIFF's range or their own; Pillow would clip them."""
    import numpy as np  # noqa: PLC0415 - few photos need it, and a child process starts quicker without

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
    return Image.fromarray(eight)


class _Children:
    """A few child processes that decode one photo at a time each; a slow one is killed and replaced."""

    def __init__(self):
        self.idle: queue.LifoQueue[subprocess.Popen | None] = queue.LifoQueue()
        for _ in range(_CHILDREN):
            self.idle.put(None)

    def decode(self, header: Header, limits: Limits, *how: int | None) -> tuple[Image.Image, Facts]:
        """Do what `_decode_here` does with these arguments, in a child process."""
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
                pickle.dump((header, limits, *how), child.stdin)  # the answer is JSON: a photo may own the child
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
            raise Refusal(f"too much work to decode: {seconds}; {RESAVE}", "large")
        if "reason" in answer:
            raise Refusal(answer["reason"], answer["kind"])
        return Image.frombytes("RGB", answer["size"], pixels), Facts(*answer["facts"])

    def close(self) -> None:
        while not self.idle.empty():
            if child := self.idle.get():
                _end_child(child)


def _start_child() -> subprocess.Popen:
    # The package may be on this process' path only, in a checkout that is not installed.
    found_from = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    one_thread = {"OPENBLAS_NUM_THREADS": "1"}  # its threads would reserve the memory that is limited here
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "carspotter.photos.decoding"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | one_thread | {"PYTHONPATH": found_from},
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
    while True:
        try:
            header, limits, *how = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pixels = b""
        _limit_resources(limits)
        try:
            image, facts = _decode_here(header, limits, *how)
            pixels = image.tobytes()
            answer = {"size": image.size, "facts": facts, "bytes": len(pixels)}
            answer["retire"] = facts.width * facts.height > _RETIRING_PIXELS
        except Refusal as refusal:
            answer = {"reason": refusal.reason, "kind": refusal.kind}
        except MemoryError:
            reason = f"needs more than the limit of {limits.memory:,} bytes of memory to decode; {RESAVE}"
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


_children = _Children()
atexit.register(_children.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_children.__init__)  # two processes must not share one child's pipes

if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(5)  # ordinary photos, decoded in the parent, go first
    _answer_jobs()
