"""Which photos show the same shot, and which the same car: one rule for curation, split and its verification.

A shot may be re-encoded, rescaled, cropped by up to 15 % of a side, mirrored or watermarked. Candidates come from
143-bit DCT hashes (pHash; Zauner, 2010) of the photo and of 36 windows of it: up to EXHAUSTIVE photos every two are
compared, beyond that those that locality-sensitive hashing (Indyk and Motwani, 1998) brings together. `alignment`
confirms each on pixels; what is alike but no copy shows the same car.

Photos of one car from other sides share no pixels, but the colours of its surroundings and its paint: where these agree
far more than those of two cars do, and no listings say otherwise, the photos are taken to show one car.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from carspotter.photos.alignment import CLOSE_SIDE, compare_closely, compare_shots
from carspotter.photos.fingerprints import SIDE
from carspotter.photos.images import decode_image, in_threads

SAME_SHOT, SAME_CAR = "same shot", "same car"
EXHAUSTIVE = 8_000  # photos of which every two are compared, in some seconds
# Windows: what a crop may have cut off the two ends of a side, in shares of it.
CUTS = [(0, 0), (0.075, 0), (0, 0.075), (0.075, 0.075), (0.15, 0), (0, 0.15)]
WITHOUT_EDGE = (24, 30)  # the windows that lack the uppermost or the lowest 15 %, where sites print their banner
# What is compared: a window of the one photo (0 is the whole) and windows of the other.
COMPARED = [(0, range(len(CUTS) ** 2)), *((edge, [edge]) for edge in WITHOUT_EDGE)]
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
ALIKE, LIKELY = 0.83, 0.78
COPY_CLOSELY = 0.92  # rendered: copies .97 and more, others up to .89; real copies .92 and more

# Likeness of colours (Bhattacharyya) around the car, and with half that of its paint. Of 1,019 real photos 175 pairs
# reach the one or the other; seen by eye, some nine in ten of these show one car. Chance pairs have .83 once in 1,000.
SAME_PLACE, SAME_PLACE_AND_PAINT = 0.88, 1.2
USUAL_PLACE = 0.5  # the median likeness of two places, on those photos
FEW_COLOURS = 8.0  # colours, by the exponential of their entropy; real surroundings have 13 to 70
CROWD = 20
COLOUR_CHUNK = 256  # photos compared with all others at a time: bounds memory


def relate_photos(
    data: Path, photos: pd.DataFrame, fingerprints: np.ndarray, show_progress: bool = True
) -> pd.DataFrame:
    """Return every two photos that must stay on one side of a split: first, second (sha256), relation.

    `photos` (columns sha256, path, listings) and `fingerprints` as from `measure_photos`, in one order. relation:
    SAME_SHOT for copies, SAME_CAR for other photos of one car.
    """
    paths = photos["path"].tolist()

    def open_large(row: int) -> np.ndarray:
        return decode_image(data / paths[row], CLOSE_SIDE).mean(axis=2).astype(np.uint8)

    pairs = find_duplicates(fingerprints, show_progress, open_large)
    pairs["relation"] = np.where(pairs["copy"], SAME_SHOT, SAME_CAR)
    same_colours = find_same_colours(fingerprints["palette"], photos["listings"].map(len).to_numpy() > 0)
    cars = pd.DataFrame(same_colours, columns=["first", "second"])
    related = pd.concat([pairs[["first", "second", "relation"]], cars.assign(relation=SAME_CAR)])
    related[["first", "second"]] = np.sort(related[["first", "second"]].to_numpy(dtype=np.int64), axis=1)
    related = related.drop_duplicates(["first", "second"], ignore_index=True)
    names = photos["sha256"].to_numpy(dtype=object)
    return related.assign(first=names[related["first"]], second=names[related["second"]])


def find_same_colours(palettes: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Return pairs of photos, as rows (M, 2), that show one place and one paint; `palettes` as in FINGERPRINT.

    Pairs of two `listed` photos, bool (N,), are left to their listings. A place of few colours and one that more than
    CROWD photos share tell nothing. Where all photos are alike, by the median, two of one place must be more alike.
    """
    if listed.all():
        return np.empty((0, 2), dtype=np.int64)
    # Roots of shares in whole numbers: the products of two photos are exact, in whatever order they are summed.
    body, around = (palettes[:, part].astype(np.float32) for part in (0, 1))
    body_norm, around_norm = (np.sqrt(np.square(part).sum(axis=1, dtype=np.float64)) for part in (body, around))
    shares = np.square(around) / np.maximum(np.square(around_norm), 1)[:, None]
    varied = np.exp(-(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1)) >= FEW_COLOURS
    some = slice(None, None, len(palettes) // COLOUR_CHUNK + 1)
    places = around[some] @ around.T / np.maximum(np.outer(around_norm[some], around_norm), 1)
    usual = np.median(places)
    # In steps, so that one photo more or less changes nothing.
    stretch = max(1.0, (1 - USUAL_PLACE) / (1 - min(round(20 * usual) / 20, 0.95)))

    # Each of the unlisted ones, which come first, with all that follow it.
    order = np.concatenate([np.flatnonzero(varied & ~listed), np.flatnonzero(varied & listed)])
    unlisted, found = np.count_nonzero(varied & ~listed), [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, unlisted, COLOUR_CHUNK):
        first, second = order[start : min(start + COLOUR_CHUNK, unlisted)], order[start:]
        place, paint = (
            part[first] @ part[second].T / np.maximum(np.outer(norm[first], norm[second]), 1)
            for part, norm in ((around, around_norm), (body, body_norm))
        )
        place = 1 - stretch * (1 - place)
        alike = (place >= SAME_PLACE) | (place + paint / 2 >= SAME_PLACE_AND_PAINT)
        row, other = np.nonzero(np.triu(alike, 1))
        found.append(np.column_stack([first[row], second[other]]))
    pairs = np.concatenate(found)
    links = np.bincount(pairs.ravel(), minlength=len(palettes))
    return pairs[(links[pairs] <= CROWD).all(axis=1)]


def find_duplicates(
    fingerprints: np.ndarray, show_progress: bool = True, open_large: Callable[[int], np.ndarray] | None = None
) -> pd.DataFrame:
    """Find all pairs of `fingerprints` that are alike: first, second (rows), similarity, copy, see `confirm`."""
    hashes = hash_windows(fingerprints["grey"])
    search = compare_all if len(hashes) <= EXHAUSTIVE else find_candidates
    return confirm(search(hashes, show_progress), fingerprints, show_progress, open_large)


def confirm(
    candidates: np.ndarray,
    fingerprints: np.ndarray,
    show_progress: bool = True,
    open_large: Callable[[int], np.ndarray] | None = None,
) -> pd.DataFrame:
    """Return those of the CANDIDATE pairs that are alike: columns first, second, similarity (0 … 1), copy.

    `open_large` returns the grey photo of a row as uint8 (CLOSE_SIDE, CLOSE_SIDE): likely pairs are compared on that as
    well, and are a copy where they agree by COPY_CLOSELY. Without it every pair that agrees by ALIKE is one.
    """

    def compare(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grey, whole = fingerprints["grey"], some["whole"]
        # A mirrored hash is that of the window seen in a mirror: turn the other photo instead, the window stays.
        cut = grey[some["cut"]]
        cut[some["mirrored"]] = cut[some["mirrored"], :, ::-1]
        similarity, windows = compare_shots(grey[whole], cut, _spans(some["window"]))
        copy = similarity >= ALIKE
        if open_large:
            for row in np.flatnonzero(similarity >= LIKELY):
                large = open_large(int(some["cut"][row]))
                large = large[:, ::-1] if some["mirrored"][row] else large
                copy[row] = compare_closely(open_large(int(whole[row])), large, windows[row]) >= COPY_CLOSELY
        return similarity, copy

    chunks = [candidates[start : start + PAIR_CHUNK] for start in range(0, len(candidates), PAIR_CHUNK)]
    compared = list(in_threads(compare, chunks, "compare", f"× {PAIR_CHUNK} pairs", show_progress))
    nothing = np.empty(0, dtype=np.float32), np.empty(0, dtype=bool)
    similarity, copy = (np.concatenate(parts) for parts in zip(nothing, *compared, strict=True))
    pairs = pd.DataFrame(
        {"first": candidates["whole"], "second": candidates["cut"], "similarity": similarity, "copy": copy}
    )
    return pairs[copy | (similarity >= ALIKE)].reset_index(drop=True)


def _spans(windows: np.ndarray) -> np.ndarray:
    """Return windows by their number as (start, length) of the two sides, in shares: float32 (N, 4)."""
    spans = np.array([(start, 1 - start - end) for start, end in CUTS], dtype=np.float32)
    return np.concatenate([spans[side] for side in np.divmod(windows, len(CUTS))], axis=1)


def hash_windows(grey: np.ndarray) -> np.ndarray:
    """Hash every window of grey photos (N, 64, 64): uint64 (N, 36, 3); [:, 0] is the whole.

    One bit per DCT coefficient below 12 × 12, except the mean: its sign. The first word holds those below 8 × 8.
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
    """Return the first 12 cosines over the part of a side that is left when its ends are cut: (12, 64)."""
    low, high = SIDE * start, SIDE * (1 - end)
    pixels = np.arange(SIDE)
    covered = np.clip(np.minimum(pixels + 1, high) - np.maximum(pixels, low), 0, 1)
    centre = np.clip(pixels + 0.5, low, high)
    waves = np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * (centre - low) / (high - low)) * covered
    waves[1:] -= covered * waves[1:].sum(axis=1, keepdims=True) / covered.sum()
    return waves


def find_candidates(hashes: np.ndarray, show_progress: bool = True) -> np.ndarray:
    """Pair photos where a window of one, perhaps mirrored, hashes like the whole of the other.

    `hashes` as from `hash_windows`; returns a sorted array of CANDIDATE, the nearest per pair. Each of TABLES hash
    tables puts photos that agree in some of the 63 low bits into one slot; the key grows with the number of photos, so
    that slots stay small. WITHOUT_EDGE windows are compared too, since a banner changes every hash of the whole.
    """
    count = len(hashes)
    key_bits = max(12, (max(count, 1) - 1).bit_length() + SPARE_BITS)
    rng = np.random.default_rng(20190101)
    masks = [
        np.bitwise_or.reduce(np.uint64(1) << rng.choice(LOW_BITS, key_bits, replace=False).astype(np.uint64))
        for _ in range(TABLES)
    ]
    jobs = [(table, mask, *compared) for table, mask in enumerate(masks) for compared in COMPARED]
    pairs = np.empty(0, dtype=np.int64)
    for fresh in in_threads(partial(_look_up, hashes, key_bits), jobs, "look up", "tables", show_progress):
        pairs = np.unique(np.concatenate([pairs, fresh]))
    return _nearest_windows(hashes, pairs)


def compare_all(hashes: np.ndarray, show_progress: bool = True) -> np.ndarray:
    """Return what `find_candidates` looks for, as CANDIDATE, by comparing every two photos."""
    wholes = [(np.ascontiguousarray(hashes[:, whole]), windows) for whole, windows in COMPARED]

    def compare(row: int) -> np.ndarray:
        found = []
        for whole, windows in wholes:
            both = np.concatenate([hashes[row, windows], hashes[row, windows] ^ ODD])
            low = np.bitwise_count(both[:, :1] ^ whole[None, :, 0]) <= LOW_DISTANCE
            window, other = np.nonzero(low)
            near = np.bitwise_count(both[window] ^ whole[other]).sum(axis=1) <= HASH_DISTANCE
            found.append(other[near & (other != row)])
        other = np.unique(np.concatenate(found))
        return np.minimum(row, other) * len(hashes) + np.maximum(row, other)

    found = in_threads(compare, range(len(hashes)), "look up", "photos", show_progress)
    pairs = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *found]))
    return _nearest_windows(hashes, pairs)


def _nearest_windows(hashes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the nearest windows of each pair (lower row × count + higher row) as CANDIDATE."""
    nearest = np.empty(len(pairs), dtype=CANDIDATE)
    for start in range(0, len(pairs), QUERY_CHUNK):
        low, high = np.divmod(pairs[start : start + QUERY_CHUNK], len(hashes))
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


def _look_up(hashes: np.ndarray, key_bits: int, job: tuple[int, np.uint64, int, Sequence[int]]) -> np.ndarray:
    """Look in one table for photos whose window `whole` is near one of the `windows` of another photo.

    Returns pairs as lower row × count + higher row, sorted. Crowded slots are sampled at another place in each table.
    """
    table, mask, whole, windows = job
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
    """Return the slot of each hash in a table: its bits under the mask, spread by Fibonacci hashing."""
    return ((hashes & mask) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - key_bits)).astype(np.int64)
