"""What a photo looks like in 5 kB: a small grey copy, its colours, brightness and sharpness; and near-duplicates.

A near-duplicate is the same shot: re-encoded, rescaled, cropped by up to 15 % of a side, mirrored or watermarked.
Candidates come from 143-bit DCT hashes (pHash; Zauner, 2010) of the photo and of 36 windows of it, looked up by
locality-sensitive hashing (Indyk and Motwani, 1998), never N×N; each is then confirmed on pixels, see `alignment`.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from carspotter.photos.alignment import compare_closely, compare_shots
from carspotter.photos.decoding import UnreadablePhoto, decode
from carspotter.photos.images import CHUNK, WORKERS
from carspotter.photos.palette import COLOURS, describe_palette
from carspotter.photos.table import read_photos
from carspotter.progress import progress_bar

SIDE = 64  # pixels of the grey copy
VERSION = 4  # raise when a fingerprint changes: it names the cache file
FINGERPRINT = np.dtype(
    [
        ("sha256", "S64"),
        ("grey", "u1", (SIDE, SIDE)),
        ("palette", "u1", (2, COLOURS)),
        ("brightness", "f4"),
        ("contrast", "f4"),
        ("sharpness", "f4"),
    ]
)

# Windows: what a crop may have cut off the two ends of a side, in shares of it.
CUTS = [(0, 0), (0.075, 0), (0, 0.075), (0.075, 0.075), (0.15, 0), (0, 0.15)]
WITHOUT_EDGE = (24, 30)  # the windows that lack the uppermost or the lowest 15 %, where sites print their banner
FREQUENCIES = 12  # cosines along a side
# Of 143 bits, and of the 63 lowest frequencies: farther apart, a pair is not looked at. Of crops by 5–15 % of both
# sides .99 come as near; of pairs of different photos some 10 in a million.
HASH_DISTANCE, LOW_DISTANCE = 34, 14
TABLES = 64
SPARE_BITS = 2  # a table has four slots and more for each photo
BUCKET, CROWDED = 64, 4  # of a slot with more than BUCKET photos a query meets CROWDED: bounds the work
QUERY_CHUNK = 4096  # photos looked up at once: bounds memory
HASH_CHUNK = 512
CANDIDATE = np.dtype([("whole", "i4"), ("cut", "i4"), ("window", "u1"), ("mirrored", "?"), ("distance", "u1")])
PAIR_CHUNK = 64
# On the grey copies pairs of one shot score .85 and more, other cars framed alike up to .80 (1,201 real photos), a shot
# from a step aside or another engine bay of the same make up to .87. Where the photos are at hand, what is likely is
# looked at once more, at three times the size.
SAME_SHOT, LIKELY = 0.83, 0.78
SAME_SHOT_CLOSELY = 0.92  # rendered: copies .97 and more, others up to .89; real copies .92 and more


def measure_photos(data: Path, photos: pd.DataFrame, show_progress: bool = True) -> tuple[np.ndarray, dict[str, str]]:
    """Fingerprint the photos (columns sha256, path), reusing what `data/fingerprints-*.bin` already holds.

    Gives an array of FINGERPRINT in the order of `photos` less the unreadable ones, and {sha256: reason} for those.
    brightness and contrast: mean and standard deviation of grey, 0 … 255. sharpness: see `_measure`.
    """
    data = Path(data)
    cache = data / f"fingerprints-{VERSION}.bin"
    unreadable = {}

    def measure(job: tuple[str, str]) -> np.ndarray | str:
        sha256, path = job
        try:
            return _measure(sha256, (data / path).read_bytes())
        except UnreadablePhoto as error:
            return error.reason

    with (
        open(cache, "ab") as new,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        # A second process that curates the same photos waits, and finds the work done.
        fcntl.flock(new, fcntl.LOCK_EX)
        known = _read_cache(cache)
        new.truncate(len(known) * FINGERPRINT.itemsize)  # a record torn by a kill
        have = {sha256.decode() for sha256 in known["sha256"]}
        jobs = [job for job in zip(photos["sha256"], photos["path"], strict=True) if job[0] not in have]
        progress = progress_bar(len(jobs), "look at photos", "photos", show_progress)
        for start in range(0, len(jobs), CHUNK):
            chunk = jobs[start : start + CHUNK]
            for (sha256, _), result in zip(chunk, pool.map(measure, chunk), strict=True):
                if isinstance(result, str):
                    unreadable[sha256] = result
                else:
                    new.write(result.tobytes())
                progress.update()
            new.flush()
        progress.close()
    known = _read_cache(cache)
    row_of = {sha256.decode(): row for row, sha256 in enumerate(known["sha256"])}
    return known[[row_of[sha256] for sha256 in photos["sha256"] if sha256 not in unreadable]], unreadable


def readable_photos(data: Path, show_progress: bool = True) -> pd.DataFrame:
    """Give the photos that can be decoded, as from `read_photos`, sorted by sha256: those that features are made of."""
    photos = read_photos(data).sort_values("sha256", ignore_index=True)
    _, unreadable = measure_photos(data, photos, show_progress)
    return photos[~photos["sha256"].isin(unreadable)].reset_index(drop=True)


def find_duplicates(
    fingerprints: np.ndarray, show_progress: bool = True, open_large: Callable[[int], np.ndarray] | None = None
) -> pd.DataFrame:
    """Find all pairs that show the same shot: columns first, second (rows of `fingerprints`), similarity (0 … 1).

    `fingerprints` may be memory-mapped. Work and memory grow in proportion to their number, as long as no more of them
    are alike. For `open_large` see `confirm`.
    """
    candidates = find_candidates(hash_windows(fingerprints["grey"]), show_progress)
    return confirm(candidates, fingerprints, show_progress, open_large)


def confirm(
    candidates: np.ndarray,
    fingerprints: np.ndarray,
    show_progress: bool = True,
    open_large: Callable[[int], np.ndarray] | None = None,
) -> pd.DataFrame:
    """Give those of the CANDIDATE pairs that show the same shot: columns first, second, similarity (0 … 1).

    `similarity` is how well small blocks agree once the pair is aligned. With `open_large`, which gives the grey photo
    of a row as uint8 (CLOSE_SIDE, CLOSE_SIDE), likely pairs are compared on that and have SAME_SHOT_CLOSELY or more;
    without it, on the small copies, SAME_SHOT or more.
    """
    similarity = np.empty(len(candidates), dtype=np.float32)
    chunks = [slice(start, start + PAIR_CHUNK) for start in range(0, len(candidates), PAIR_CHUNK)]

    def compare(chunk: slice) -> int:
        some = candidates[chunk]
        grey, whole = fingerprints["grey"], some["whole"]
        # A mirrored hash is that of the window seen in a mirror: turn the other photo instead, the window stays.
        cut = grey[some["cut"]]
        cut[some["mirrored"]] = cut[some["mirrored"], :, ::-1]
        similarity[chunk], windows = compare_shots(grey[whole], cut, _spans(some["window"]))
        if open_large:
            for row in np.flatnonzero(similarity[chunk] >= LIKELY):
                large = open_large(int(some["cut"][row]))
                large = large[:, ::-1] if some["mirrored"][row] else large
                similarity[chunk.start + row] = compare_closely(open_large(int(whole[row])), large, windows[row])
        return len(some)

    with (
        progress_bar(len(candidates), "compare", "pairs", show_progress) as progress,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        for count in pool.map(compare, chunks):
            progress.update(count)
    pairs = pd.DataFrame({"first": candidates["whole"], "second": candidates["cut"], "similarity": similarity})
    return pairs[similarity >= (SAME_SHOT_CLOSELY if open_large else SAME_SHOT)].reset_index(drop=True)


def _spans(windows: np.ndarray) -> np.ndarray:
    """Give windows by their number as (start, length) of the two sides, in shares of them: float32 (N, 4)."""
    spans = np.array([(start, 1 - start - end) for start, end in CUTS], dtype=np.float32)
    return np.concatenate([spans[side] for side in np.divmod(windows, len(CUTS))], axis=1)


def hash_windows(grey: np.ndarray) -> np.ndarray:
    """Hash every window of grey photos (N, 64, 64): uint64, (N, 36, 3); [:, 0] is the whole.

    One bit per DCT coefficient below 12 × 12, but for the mean: its sign. The first of the three words holds those
    below 8 × 8.
    """
    basis = np.stack([_window_basis(start, end) for start, end in CUTS]).astype(np.float32)
    hashes = np.empty((len(grey), len(CUTS) ** 2, len(WORDS)), dtype=np.uint64)
    for start in range(0, len(grey), HASH_CHUNK):
        block = grey[start : start + HASH_CHUNK].astype(np.float32)
        block -= block.mean(axis=(1, 2), keepdims=True)
        # n photo, v and h cuts of the two sides, k and l frequencies, y and x pixels
        half = np.einsum("nyx,hlx->nyhl", block, basis, optimize=True)
        waves = np.einsum("vky,nyhl->nvhkl", basis, half, optimize=True)
        bits = waves.reshape(len(block), len(CUTS) ** 2, FREQUENCIES**2) > 0
        for word, places in enumerate(WORDS):
            hashes[start : start + HASH_CHUNK, :, word] = _pack(bits[..., places])
    return hashes


def mirror_hashes(hashes: np.ndarray) -> np.ndarray:
    """Give the hashes (…, 3) of the mirror images: the odd horizontal frequencies turn their signs."""
    return hashes ^ ODD


def _pack(bits: np.ndarray) -> np.ndarray:
    """Pack up to 64 bits along the last axis into a uint64."""
    padded = np.zeros((*bits.shape[:-1], 64), dtype=bool)
    padded[..., : bits.shape[-1]] = bits
    return np.packbits(padded, axis=-1).view(np.uint64)[..., 0]


# Places of the coefficients (flattened 12 × 12) in the three words; the mean, at place 0, is nowhere.
_vertical, _horizontal = np.divmod(np.arange(FREQUENCIES**2), FREQUENCIES)
_low = (_vertical < 8) & (_horizontal < 8)
WORDS = [np.flatnonzero(_low)[1:], *np.array_split(np.flatnonzero(~_low), 2)]
ODD = np.array([_pack(_horizontal[places] % 2 == 1) for places in WORDS])
LOW_BITS = np.flatnonzero(np.unpackbits(_pack(np.ones(63, dtype=bool))[None].view(np.uint8), bitorder="little"))


def _window_basis(start: float, end: float) -> np.ndarray:
    """Give the first 12 cosines over the part of a side that is left when its ends are cut: (12, 64)."""
    low, high = SIDE * start, SIDE * (1 - end)
    pixels = np.arange(SIDE)
    covered = np.clip(np.minimum(pixels + 1, high) - np.maximum(pixels, low), 0, 1)
    centre = np.clip(pixels + 0.5, low, high)
    waves = np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * (centre - low) / (high - low)) * covered
    waves[1:] -= covered * waves[1:].sum(axis=1, keepdims=True) / covered.sum()
    return waves


def find_candidates(hashes: np.ndarray, show_progress: bool = True) -> np.ndarray:
    """Pair photos of which a window of the one, perhaps mirrored, hashes like the whole of the other.

    `hashes` as from `hash_windows`; gives an array of CANDIDATE, sorted, one per pair: the nearest. Each of TABLES hash
    tables puts photos that agree in some of the 63 low bits into one slot; the bits of a key grow with the logarithm of
    the number of photos, so that slots stay small. A banner along an edge changes every hash of the whole; so the
    photos without their lowest and without their highest part are compared as well.
    """
    count = len(hashes)
    key_bits = max(12, (max(count, 1) - 1).bit_length() + SPARE_BITS)
    rng = np.random.default_rng(20190101)
    masks = [
        np.bitwise_or.reduce(np.uint64(1) << rng.choice(LOW_BITS, key_bits, replace=False).astype(np.uint64))
        for _ in range(TABLES)
    ]
    every = range(hashes.shape[1])
    jobs = [
        (table, whole, windows)
        for table in range(TABLES)
        for whole, windows in [(0, every), *((window, [window]) for window in WITHOUT_EDGE)]
    ]

    def look_up(job: tuple[int, int, Sequence[int]]) -> np.ndarray:
        table, whole, windows = job
        return _look_up(hashes, whole, windows, masks[table], key_bits, table)

    pairs = np.empty(0, dtype=np.int64)
    with (
        progress_bar(len(jobs), "look up", "tables", show_progress) as progress,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        for fresh in _a_few_ahead(pool, look_up, jobs):
            pairs = np.unique(np.concatenate([pairs, fresh]))
            progress.update()
    return _nearest_windows(hashes, *np.divmod(pairs, max(count, 1)))


def _nearest_windows(hashes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Give each pair its nearest windows, as CANDIDATE: the ones by which the tables met depend on the other photos."""
    nearest = np.empty(len(first), dtype=CANDIDATE)
    for start in range(0, len(first), QUERY_CHUNK):
        low, high = first[start : start + QUERY_CHUNK], second[start : start + QUERY_CHUNK]
        every = []
        for whole, cut in ((low, high), (high, low)):
            for turn in (np.zeros_like(ODD), ODD):
                distance = np.bitwise_count(hashes[whole] ^ turn ^ hashes[cut, :1]).sum(axis=2)
                for edge in WITHOUT_EDGE:
                    alike = np.bitwise_count(hashes[whole, edge] ^ turn ^ hashes[cut, edge]).sum(axis=1)
                    distance[:, 0] = np.minimum(distance[:, 0], alike)
                every.append(distance)
        every = np.concatenate(every, axis=1)
        best = every.argmin(axis=1)
        part = nearest[start : start + QUERY_CHUNK]
        part["distance"] = every[np.arange(len(best)), best]
        side, part["window"] = np.divmod(best, hashes.shape[1])
        turned, part["mirrored"] = np.divmod(side, 2)
        part["whole"], part["cut"] = np.where(turned, high, low), np.where(turned, low, high)
    return nearest


def _a_few_ahead(pool: ThreadPoolExecutor, function: Callable, jobs: list) -> Iterator:
    """Like pool.map, but no more results wait than the pool has workers: bounds memory."""
    waiting = deque()
    for job in jobs:
        waiting.append(pool.submit(function, job))
        if len(waiting) > WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _look_up(
    hashes: np.ndarray, whole: int, windows: Sequence[int], mask: np.uint64, key_bits: int, table: int
) -> np.ndarray:
    """Look in one table for the other photos whose window `whole` is near one of the `windows` of each photo.

    Gives pairs as lower row × count + higher row, sorted, each once. Where a slot is crowded, the photos that are
    compared lie elsewhere in it from table to table.
    """
    wholes = np.ascontiguousarray(hashes[:, whole])
    keys = _slot(wholes[:, 0], mask, key_bits)
    order = np.argsort(keys, kind="stable").astype(np.int32)
    first = np.zeros((1 << key_bits) + 1, dtype=np.int32)
    np.cumsum(np.bincount(keys, minlength=1 << key_bits), out=first[1:])
    found = []
    for start in range(0, len(hashes), QUERY_CHUNK):
        block = hashes[start : start + QUERY_CHUNK]
        for window in windows:
            for turn in (np.zeros_like(ODD), ODD):
                query = block[:, window] ^ turn
                slot = _slot(query[:, 0], mask, key_bits)
                low, size = first[slot], first[slot + 1] - first[slot]
                crowded = np.flatnonzero(size > BUCKET)
                low[crowded] += table * CROWDED % (size[crowded] - CROWDED + 1)
                size[crowded] = CROWDED
                photo = np.repeat(np.arange(len(block)), size)
                within = np.arange(len(photo)) - np.repeat(np.cumsum(size) - size, size)
                cut = order[np.repeat(low, size) + within]
                distance = np.bitwise_count(query[photo, 0] ^ wholes[cut, 0])
                near = np.flatnonzero((distance <= LOW_DISTANCE) & (photo + start != cut))
                photo, cut = photo[near], cut[near]
                distance = np.bitwise_count(query[photo] ^ wholes[cut]).sum(axis=1)
                near = distance <= HASH_DISTANCE
                photo, cut = photo[near] + start, cut[near]
                found.append(np.minimum(photo, cut) * len(hashes) + np.maximum(photo, cut))
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _slot(hashes: np.ndarray, mask: np.uint64, key_bits: int) -> np.ndarray:
    """Give the slot of each hash in a table: its bits under the mask, spread by Fibonacci hashing."""
    return ((hashes & mask) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - key_bits)).astype(np.int64)


def _measure(sha256: str, content: bytes) -> np.ndarray:
    """Fingerprint the bytes of one photo.

    sharpness: the Laplacian of grey at 128 × 128 where it is strongest (98th percentile, for a soft background is no
    fault), over the spread of grey there; out-of-focus photos fall below .8 whatever their size and light. Raises
    UnreadablePhoto.
    """
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UnreadablePhoto(sha256, "the bytes on disk are no longer those that were collected")
    photo, _ = decode(content, at_least=2 * SIDE)
    grey = photo.convert("L").resize((4 * SIDE, 4 * SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(grey.reduce(2), dtype=np.float32)  # noise is averaged away, which would pass for detail
    middle = pixels[1:-1, 1:-1]
    laplacian = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:] - 4 * middle
    sharpness = np.percentile(np.abs(laplacian), 98) / (pixels.std() + 1)
    small = np.asarray(grey.reduce(4))
    palette = describe_palette(photo)
    return np.array((sha256, small, palette, pixels.mean(), pixels.std(), sharpness), dtype=FINGERPRINT)


def _read_cache(cache: Path) -> np.ndarray:
    """Map the cached fingerprints; a record torn by a kill is left out."""
    count = cache.stat().st_size // FINGERPRINT.itemsize if cache.exists() else 0
    if not count:
        return np.empty(0, dtype=FINGERPRINT)
    return np.memmap(cache, dtype=FINGERPRINT, mode="r", shape=(count,))
