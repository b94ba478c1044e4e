"""Near-duplicates: altered copies are found, other photos are not, and the search agrees with one through all pairs."""

import io

import numpy as np
import pytest
from generated_photos import encode, scene
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from carspotter.photos import duplicates
from carspotter.photos.alignment import CLOSE_SIDE
from carspotter.photos.duplicates import compare_all, find_candidates, find_duplicates, hash_windows
from carspotter.photos.fingerprints import COLOURS, FINGERPRINT

SIZE = (320, 240)


def crop(image, left, top, right, bottom):
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def watermark(image):
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    draw.rectangle((0, 205, 320, 240), fill=(20, 20, 90))
    draw.text((20, 208), "www.used-cars.example", fill="white", font_size=20)
    return marked


# What sellers and sites do to a photo, as functions of the picture; the bytes are coded anew in every case.
COPIES = {
    "re-encoded": lambda image: image,
    "rescaled": lambda image: image.resize((150, 113), Image.Resampling.BILINEAR),
    "mirrored": ImageOps.mirror,
    "cropped by 15 % of its width": lambda image: crop(image, 0.15, 0, 0, 0),
    "cropped by 10 % from all corners": lambda image: crop(image, 0.05, 0.06, 0.05, 0.04),
    "cropped by 15 % of both sides": lambda image: crop(image, 0.03, 0.12, 0.12, 0.03),
    "cropped and mirrored": lambda image: ImageOps.mirror(crop(image, 0.1, 0, 0.02, 0.1)),
    "watermarked": watermark,
    "made brighter": lambda image: image.point(lambda level: min(255, round(level * 1.2 + 10))),
}


def grey(images):
    small = [image.convert("L").resize((64, 64), Image.Resampling.BILINEAR) for image in images]
    table = np.zeros(len(small), dtype=FINGERPRINT)
    table["grey"] = [np.asarray(image) for image in small]
    return table


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found_and_other_photos_are_not(name):
    originals = [scene(seed, SIZE) for seed in range(30)]
    copies = [Image.open(io.BytesIO(encode(COPIES[name](image), quality=70))) for image in originals]
    pairs = find_duplicates(grey(originals + copies), show_progress=False)
    found = {tuple(sorted(pair)) for pair in zip(pairs["first"], pairs["second"], strict=True)}
    true = {(k, k + 30) for k in range(30)}
    assert found <= true, f"{len(found - true)} pairs of different photos"
    assert len(found) >= 29, f"{30 - len(found)} of 30 copies missed"


def test_two_shots_of_one_place_are_no_copies():
    # The same backdrop with a car in another place: the whole is alike, a third of it is not.
    def shot(seed, x):
        image = scene(seed, SIZE)
        image.paste(scene(500, (180, 130)), (x, 80))
        return image

    different = [shot(k, 10 if k % 2 else 130) for k in range(12)]
    assert find_duplicates(grey(different), show_progress=False).empty


def test_photos_that_are_alike_only_from_afar_are_no_copies():
    # What the hashes see is the same in all of them, as with cars framed alike; the details are not.
    def pixels(image):
        return np.asarray(image, dtype=float)

    afar = ImageFilter.GaussianBlur(9)
    layout = pixels(scene(1, SIZE).filter(afar))
    details = [pixels(scene(seed, SIZE)) - pixels(scene(seed, SIZE).filter(afar)) for seed in range(20, 32)]
    photos = grey([Image.fromarray(np.clip(layout + detail, 0, 255).astype(np.uint8)) for detail in details])
    whole = hash_windows(photos["grey"])[:, 0]
    assert np.bitwise_count(whole[0] ^ whole[1:]).sum(axis=1).min() < duplicates.HASH_DISTANCE
    assert find_duplicates(photos, show_progress=False).empty


def test_a_closer_look_tells_photos_apart_that_the_small_copies_do_not():
    # Engine bays of one make, or a second shot from half a step aside: alike but for a part of the details.
    def large(image):
        return np.asarray(image.convert("L").resize((CLOSE_SIDE, CLOSE_SIDE), Image.Resampling.BILINEAR))

    original = scene(1, (640, 480))
    other = original.copy()
    for x in range(0, 640, 160):  # a row of other small things in each third of the picture
        for y in (60, 220, 380):
            other.paste(scene(1000 + x + y, (44, 44)), (x + 20, y))
    banner = original.copy()
    banner.paste((20, 20, 90), (0, 430, 640, 480))
    copies = [crop(original, 0.05, 0.1, 0.02, 0), ImageOps.mirror(original), banner]
    photos = [original, other, *(Image.open(io.BytesIO(encode(image, quality=70))) for image in copies)]

    def found(**options):
        pairs = find_duplicates(grey(photos), show_progress=False, **options)
        names = [tuple(sorted(pair)) for pair in zip(pairs["first"], pairs["second"], strict=True)]
        return dict(zip(names, pairs["copy"], strict=True))

    assert found()[0, 1]
    closely = found(open_large=lambda row: large(photos[row]))
    assert closely[0, 2] and closely[0, 3] and closely[0, 4]
    assert not closely[0, 1], "alike, and so on one side of a split, but no copy"


def test_flat_pictures_are_not_copies_of_each_other():
    flat = [Image.new("RGB", SIZE, (level, level, level)) for level in (0, 100, 101, 255)]
    assert find_duplicates(grey(flat), show_progress=False).empty


def test_whether_two_photos_match_does_not_depend_on_the_others():
    original = scene(1, SIZE)
    pair = [original, crop(original, 0.1, 0.02, 0.03, 0.1)]
    alone = find_duplicates(grey(pair), show_progress=False)
    among = find_duplicates(grey([scene(seed, SIZE) for seed in range(50, 150)] + pair), show_progress=False)
    assert alone["similarity"].tolist() == among["similarity"].tolist() and len(alone) == 1
    turned_round = find_duplicates(grey(pair[::-1]), show_progress=False)
    np.testing.assert_allclose(turned_round["similarity"], alone["similarity"], atol=1e-6)


def test_the_mirrored_hash_is_the_hash_of_the_mirror_image():
    images = grey([scene(seed, SIZE) for seed in range(8)])["grey"]
    plain, mirrored = hash_windows(images), hash_windows(images[:, :, ::-1])
    assert np.bitwise_count(plain[:, 0] ^ duplicates.ODD ^ mirrored[:, 0]).sum(axis=1).max() <= 2


def test_the_hash_of_a_window_is_close_to_the_hash_of_the_cropped_photo():
    images = [scene(seed, SIZE) for seed in range(20)]
    whole = hash_windows(grey(images)["grey"])
    cut = hash_windows(grey([crop(image, 0.15, 0, 0, 0.15) for image in images])["grey"])[:, 0]
    nearest = np.bitwise_count(whole ^ cut[:, None]).sum(axis=2).min(axis=1)
    unaided = np.bitwise_count(whole[:, 0] ^ cut).sum(axis=1)
    assert np.median(nearest) <= 18 < 36 <= np.median(unaided)


def test_the_tables_find_what_a_search_through_all_pairs_finds():
    rng = np.random.default_rng(0)
    # Photos whose hashes are as skewed as real ones: some bits mean little, and all depend on few causes.
    hashes = skewed_hashes(rng, 500)
    for row in range(100):  # near-duplicates: the whole of the one is a window of the other, with some bits wrong
        changed = hashes[row, row % 36].copy()
        for bit in rng.choice(140, 20, replace=False):
            word, place = divmod(int(bit), 60)
            changed[word] ^= np.uint64(1) << np.uint64(place)
        hashes[400 + row, 0] = changed if row % 2 else changed ^ duplicates.ODD
    candidates = find_candidates(hashes, show_progress=False)
    found = {tuple(sorted(pair)) for pair in zip(candidates["whole"].tolist(), candidates["cut"].tolist(), strict=True)}
    true = set()
    for row in range(500):
        for windows in (hashes[row], hashes[row] ^ duplicates.ODD):
            apart = np.bitwise_count(windows[:, None] ^ hashes[None, :, 0])
            near = (apart.sum(axis=2) <= duplicates.HASH_DISTANCE) & (apart[..., 0] <= duplicates.LOW_DISTANCE)
            true |= {tuple(sorted((row, int(other)))) for other in np.flatnonzero(near.any(axis=0)) if other != row}
    exact = compare_all(hashes, show_progress=False)
    assert {tuple(sorted(pair)) for pair in zip(exact["whole"].tolist(), exact["cut"].tolist(), strict=True)} >= true
    assert len(true) >= 90
    assert len(found & true) >= 0.97 * len(true), f"{len(found & true)} of {len(true)}"


def test_many_copies_of_one_photo_do_not_fill_the_memory():
    # All hashes are the same: each photo must meet some others, but not all.
    rng = np.random.default_rng(0)
    hashes = np.repeat(skewed_hashes(rng, 1), 300, axis=0)
    candidates = find_candidates(hashes, show_progress=False)
    assert len(np.unique(np.concatenate([candidates["whole"], candidates["cut"]]))) == 300
    assert len(candidates) < 300 * 299 / 2


def skewed_hashes(rng, count):
    causes = rng.normal(size=(count, 40)) @ rng.normal(size=(40, 36 * 144)) + rng.normal(size=36 * 144) * 3
    bits = causes.reshape(count, 36, 3, 48) > 0
    padded = np.concatenate([bits, np.zeros((count, 36, 3, 16), dtype=bool)], axis=-1)
    return np.packbits(padded, axis=-1).view(np.uint64)[..., 0]


@pytest.mark.parametrize("chunk", [3, 1024])
def test_colours_are_compared_with_all_that_follow_in_blocks_of_any_size(monkeypatch, chunk):
    monkeypatch.setattr(duplicates, "COLOUR_CHUNK", chunk)
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(COLOURS, 0.2), (40, 2))
    shares[10:30] = 0.9 * shares[:20] + 0.1 * shares[10:30]  # ten pairs and more, of one place and paint
    palettes = np.round(255 * np.sqrt(shares)).astype(np.uint8)
    listed = np.arange(40) % 3 == 0
    found = {tuple(sorted(pair)) for pair in duplicates.find_same_colours(palettes, listed).tolist()}
    unit = palettes / np.linalg.norm(palettes.astype(float), axis=2, keepdims=True)
    paint, place = (part @ part.T for part in np.moveaxis(unit, 1, 0))
    alike = (place >= duplicates.SAME_PLACE) | (place + paint / 2 >= duplicates.SAME_PLACE_AND_PAINT)
    alike &= ~(listed[:, None] & listed)
    assert found == set(zip(*(rows.tolist() for rows in np.nonzero(np.triu(alike, 1))), strict=True))
    assert len(found) >= 10
