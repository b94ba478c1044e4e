"""What a photo looks like in 4 kB: a small grey copy, a perceptual hash, brightness and sharpness; and near-duplicates.

A near-duplicate is the same shot: re-encoded, rescaled, cropped by up to 15 % of a side, mirrored or watermarked.
Candidates come from 64-bit DCT hashes (pHash; Zauner, 2010) of the photo and of 36 windows of it, looked up by
locality-sensitive hashing (Indyk and Motwani, 1998), never N×N; each is then confirmed on pixels, after the two grey
copies have been aligned (Lucas and Kanade, 1981). Whether two photos match depends on these two alone.
"""

from __future__ import annotations

import fcntl
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from carspotter.photos.images import CHUNK, WORKERS, UnreadablePhoto, open_photo, to_rgb
from carspotter.progress import progress_bar

SIDE = 64  # pixels of the grey copy
VERSION = 2  # raise when a fingerprint changes: it names the cache file
FINGERPRINT = np.dtype(
    [("sha256", "S64"), ("grey", "u1", (SIDE, SIDE)), ("brightness", "f4"), ("contrast", "f4"), ("sharpness", "f4")]
)

# Windows: what a crop may have cut off the two ends of a side, in shares of it.
CUTS = [(0, 0), (0.075, 0), (0, 0.075), (0.075, 0.075), (0.15, 0), (0, 0.15)]
WITHOUT_EDGE = (24, 30)  # the windows that lack the uppermost or the lowest 15 %, where sites print their banner
TABLES, KEY_BITS = 24, 16
HASH_DISTANCE = 14  # of 63 bits: farther apart, a candidate is not looked at
QUERY_CHUNK = 4096  # photos looked up at once: bounds memory
CANDIDATE = np.dtype([("whole", "i4"), ("cut", "i4"), ("window", "u1"), ("distance", "u1")])
PAIR_CHUNK = 64
ALIGN_STEPS = 10
BLOCKS, FLAT = 8, 4.0  # blocks along a side; below this spread of grey (0 … 255) a block says nothing
# Of 1,201 real photos, pairs that show one shot score .85 and more, other cars framed alike up to .80.
SAME_SHOT = 0.83


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


def find_duplicates(fingerprints: np.ndarray, show_progress: bool = True) -> pd.DataFrame:
    """Find all pairs that show the same shot: columns first, second (rows of `fingerprints`), similarity (0 … 1).

    `similarity` is the median correlation of small blocks once the pair is aligned; below SAME_SHOT it is no pair.
    """
    candidates = _find_candidates(hash_windows(fingerprints["grey"]))
    similarity = np.empty(len(candidates), dtype=np.float32)
    with progress_bar(len(candidates), "compare", "pairs", show_progress) as progress:
        for start in range(0, len(candidates), PAIR_CHUNK):
            chunk = candidates[start : start + PAIR_CHUNK]
            similarity[start : start + PAIR_CHUNK] = _compare(fingerprints["grey"], chunk)
            progress.update(len(chunk))
    pairs = pd.DataFrame({"first": candidates["whole"], "second": candidates["cut"], "similarity": similarity})
    return pairs[similarity >= SAME_SHOT].reset_index(drop=True)


def hash_windows(grey: np.ndarray) -> np.ndarray:
    """Hash every window of grey photos (N, 64, 64), and its mirror image: uint64, (N, 36, 2); [:, 0, 0] is the whole.

    One bit per DCT coefficient below 8 × 8, but for the mean: its sign. A mirror image turns the signs of the odd
    horizontal frequencies, so its hash costs nothing.
    """
    basis = np.stack([_window_basis(start, end) for start, end in CUTS]).astype(np.float32)
    hashes = np.empty((len(grey), len(CUTS) ** 2, 2), dtype=np.uint64)
    odd = np.tile(np.arange(8) % 2 == 1, 8)
    for start in range(0, len(grey), 1024):
        block = grey[start : start + 1024].astype(np.float32)
        block -= block.mean(axis=(1, 2), keepdims=True)
        # n photo, v and h cuts of the two sides, k and l frequencies, y and x pixels
        half = np.einsum("nyx,hlx->nyhl", block, basis, optimize=True)
        waves = np.einsum("vky,nyhl->nvhkl", basis, half, optimize=True)
        bits = waves.reshape(len(block), len(CUTS) ** 2, 64) > 0
        mirrored = bits ^ odd
        for side, signs in enumerate((bits, mirrored)):
            signs[..., 0] = False
            hashes[start : start + 1024, :, side] = np.packbits(signs, axis=-1).view(np.uint64)[..., 0]
    return hashes


def _window_basis(start: float, end: float) -> np.ndarray:
    """Give the first 8 cosines over the part of a side that is left when its ends are cut: (8, 64)."""
    low, high = SIDE * start, SIDE * (1 - end)
    pixels = np.arange(SIDE)
    covered = np.clip(np.minimum(pixels + 1, high) - np.maximum(pixels, low), 0, 1)
    centre = np.clip(pixels + 0.5, low, high)
    waves = np.cos(np.pi * np.arange(8)[:, None] * (centre - low) / (high - low)) * covered
    waves[1:] -= covered * waves[1:].sum(axis=1, keepdims=True) / covered.sum()
    return waves


def _find_candidates(hashes: np.ndarray) -> np.ndarray:
    """Pair photos of which a window of the one, perhaps mirrored, hashes like the whole of the other.

    A banner along an edge changes every hash of the whole; so the photos without their lowest and without their highest
    part are compared as well.
    """
    found = np.empty(0, dtype=CANDIDATE)
    rng = np.random.default_rng(20190101)
    for _ in range(TABLES):
        mask = np.bitwise_or.reduce(np.uint64(1) << rng.choice(63, KEY_BITS, replace=False).astype(np.uint64))
        fresh = [_look_up(hashes[:, 0, 0], hashes.reshape(len(hashes), 2 * len(CUTS) ** 2), mask)]
        fresh += [_look_up(hashes[:, window, 0], hashes[:, window], mask) for window in WITHOUT_EDGE]
        found = _keep_nearest(np.concatenate([found, *fresh]))
    return found


def _look_up(hashes: np.ndarray, queries: np.ndarray, mask: np.uint64) -> np.ndarray:
    """Find for each photo's queries (N, Q) the other photos whose hash (N,) agrees under the mask and is near."""
    order = np.argsort(hashes & mask, kind="stable")
    keys = (hashes & mask)[order]
    width = queries.shape[1]
    found = []
    for start in range(0, len(queries), QUERY_CHUNK):
        wanted = (queries[start : start + QUERY_CHUNK] & mask).ravel()
        low, high = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        counts = high - low
        query = np.repeat(np.arange(len(wanted)), counts)
        within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        cut = order[np.repeat(low, counts) + within]
        photo, window = start + query // width, query % width
        distance = np.bitwise_count(queries[photo, window] ^ hashes[cut])
        near = np.flatnonzero((distance <= HASH_DISTANCE) & (photo != cut))
        fresh = np.empty(len(near), dtype=CANDIDATE)
        fresh["whole"], fresh["cut"] = photo[near], cut[near]
        fresh["window"], fresh["distance"] = window[near], distance[near]
        found.append(_keep_nearest(fresh))
    return np.concatenate(found) if found else np.empty(0, dtype=CANDIDATE)


def _keep_nearest(candidates: np.ndarray) -> np.ndarray:
    """Keep, of all candidates for one pair of photos, the one with the least distance."""
    low = np.minimum(candidates["whole"], candidates["cut"])
    high = np.maximum(candidates["whole"], candidates["cut"])
    order = np.lexsort((candidates["window"], candidates["whole"], candidates["distance"], high, low))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(low[order]) != 0) | (np.diff(high[order]) != 0)
    return candidates[order[first]]


def _compare(grey: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Align the window of `whole` with `cut`, then say how well they agree: float32, 0 … 1, one per candidate."""
    vertical, rest = np.divmod(candidates["window"], 2 * len(CUTS))
    horizontal, mirrored = np.divmod(rest, 2)
    whole = _soften(grey[candidates["whole"]])
    cut = _soften(grey[candidates["cut"]])
    # A mirrored hash is that of the window seen in a mirror: turn the other photo instead, the window stays.
    cut[mirrored == 1] = cut[mirrored == 1, :, ::-1]
    # The window as (start, length) of the two sides, in shares of them.
    cuts = np.array([(start, 1 - start - end) for start, end in CUTS], dtype=np.float32)
    window = np.concatenate([cuts[vertical], cuts[horizontal]], axis=1)
    for _ in range(ALIGN_STEPS):
        window = _improve(whole, cut, window)
    return _agreement(_look_through(whole, window, SIDE)[0], cut)


def _soften(grey: np.ndarray) -> np.ndarray:
    """Blur over 3 × 3 pixels: alignment needs slopes, and re-encoding leaves noise."""
    soft = np.pad(grey.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    soft = (soft[:, :-2] + 2 * soft[:, 1:-1] + soft[:, 2:]) / 4
    return (soft[:, :, :-2] + 2 * soft[:, :, 1:-1] + soft[:, :, 2:]) / 4


def _look_through(whole: np.ndarray, window: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample a window of each photo at points × points; give the view and its slopes down and across, per pixel."""
    at = _grid(points)
    y, x = (np.clip((window[:, [k]] + window[:, [k + 1]] * at) * SIDE - 0.5, 0, SIDE - 1.001) for k in (0, 2))
    top, left = y.astype(np.intp), x.astype(np.intp)
    dy, dx = (y - top)[:, :, None], (x - left)[:, None, :]
    corner = (np.arange(len(whole)) * SIDE * SIDE)[:, None, None] + top[:, :, None] * SIDE + left[:, None, :]
    pixels = whole.ravel()
    a, b, c, d = (pixels[corner + step] for step in (0, 1, SIDE, SIDE + 1))
    b -= a
    d -= c
    a += b * dx
    c += d * dx
    c -= a
    return a + c * dy, c, b + (d - b) * dy


def _improve(whole: np.ndarray, cut: np.ndarray, window: np.ndarray) -> np.ndarray:
    """One Gauss-Newton step towards the window (start, length of both sides) that looks most like `cut`."""
    view, down, across = _look_through(whole, window, SIDE // 2)
    # `cut` at the same points: they lie where four pixels meet
    cut = (cut[:, ::2, ::2] + cut[:, 1::2, ::2] + cut[:, ::2, 1::2] + cut[:, 1::2, 1::2]) / 4
    at = _grid(SIDE // 2)
    # d view / d (start, length of both sides); brightness may change by a gain and an offset
    slopes = np.stack([down, down * at[:, None], across, across * at, view / SIDE, np.ones_like(view)], axis=1)
    slopes = slopes.reshape(len(view), 6, -1) * SIDE
    error = (cut - view).reshape(len(view), -1)
    # Pixels that differ a lot (a watermark) must not pull: weights of Geman and McClure.
    spread = 2 * np.median(np.abs(error), axis=1, keepdims=True) + 2
    weight = 1 / (1 + (error / spread) ** 2) ** 2
    weighted = slopes * weight[:, None]
    normal = weighted @ slopes.transpose(0, 2, 1)
    normal += np.eye(6, dtype=np.float32) * (1e-5 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-3)
    step = np.linalg.solve(normal, weighted @ error[..., None])[:, :4, 0]
    return window + np.clip(step, -0.03, 0.03)


def _grid(points: int) -> np.ndarray:
    return ((np.arange(points) + 0.5) / points).astype(np.float32)


def _agreement(view: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Give the median correlation of the 8 × 8 blocks that hold any structure.

    Blocks, because two cars framed alike correlate as wholes but not in their details; the median, because a watermark
    spoils some blocks only.
    """
    view, cut = (
        photo.reshape(-1, BLOCKS, SIDE // BLOCKS, BLOCKS, SIDE // BLOCKS)
        .transpose(0, 1, 3, 2, 4)
        .reshape(len(photo), BLOCKS**2, -1)
        for photo in (view, cut)
    )
    view = view - view.mean(axis=2, keepdims=True)
    cut = cut - cut.mean(axis=2, keepdims=True)
    view_spread, cut_spread = view.std(axis=2), cut.std(axis=2)
    # The 1 added to either spread keeps coding noise in nearly flat blocks from counting as structure.
    correlation = (view * cut).mean(axis=2) / ((view_spread + 1) * (cut_spread + 1))
    structured = np.maximum(view_spread, cut_spread) > FLAT
    enough = structured.sum(axis=1) >= BLOCKS
    correlation = np.where(structured | ~enough[:, None], correlation, np.nan)
    return np.where(enough, np.nanmedian(correlation, axis=1), 0).astype(np.float32)


def _measure(sha256: str, photo: bytes) -> np.ndarray:
    """Fingerprint the bytes of one photo.

    sharpness: the Laplacian of grey at 128 × 128 where it is strongest (98th percentile, for a soft background is no
    fault), over the spread of grey there; out-of-focus photos fall below .8 whatever their size and light. Raises
    UnreadablePhoto.
    """
    if hashlib.sha256(photo).hexdigest() != sha256:
        raise UnreadablePhoto(sha256, "the bytes on disk are no longer those that were collected")
    image, _ = open_photo(photo, at_least=2 * SIDE)
    grey = to_rgb(image).convert("L").resize((4 * SIDE, 4 * SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(grey.reduce(2), dtype=np.float32)  # noise is averaged away, which would pass for detail
    middle = pixels[1:-1, 1:-1]
    laplacian = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:] - 4 * middle
    sharpness = np.percentile(np.abs(laplacian), 98) / (pixels.std() + 1)
    small = np.asarray(grey.reduce(4))
    return np.array((sha256, small, pixels.mean(), pixels.std(), sharpness), dtype=FINGERPRINT)


def _read_cache(cache: Path) -> np.ndarray:
    """Map the cached fingerprints; a record torn by a kill is left out."""
    count = cache.stat().st_size // FINGERPRINT.itemsize if cache.exists() else 0
    if not count:
        return np.empty(0, dtype=FINGERPRINT)
    return np.memmap(cache, dtype=FINGERPRINT, mode="r", shape=(count,))
