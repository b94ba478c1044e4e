"""The sample world: the same seed gives the same bytes, the truth is true, the site shows all of it and no more."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from generated_photos import scene
from PIL import Image, ImageOps
from protego import Protego

from carspotter.photos.duplicates import find_duplicates
from carspotter.photos.fingerprints import FINGERPRINT, SIDE
from carspotter_sample import listings as sample_listings
from carspotter_sample.bodies import MATERIAL, build_car
from carspotter_sample.junk import DRAWN
from carspotter_sample.listings import COPIES, JUNK, SHIFTED_CITY, plan_listings, render_listing, write_photos
from carspotter_sample.phone import decode
from carspotter_sample.raster import Camera
from carspotter_sample.scenes import Place, draw_look, draw_place, draw_scene
from carspotter_sample.shapes import SHAPES
from carspotter_sample.site import PAGE_SIZE, SampleSite, read_listings

SEED = 3
LISTINGS = 12
SMALL = 200  # pixels: what is tested here does not depend on the size


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_photos(
        tmp_path_factory.mktemp("sample") / "photos",
        LISTINGS,
        SEED,
        longest_side=SMALL,
        processes=1,
    )


@pytest.fixture(scope="module")
def truth(folder) -> list[dict[str, str]]:
    return read_table(folder / "truth.csv")


@pytest.fixture(scope="module")
def site(folder):
    with SampleSite(folder) as running:
        yield running


def get(url: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


@pytest.mark.slow
def test_the_same_seed_draws_the_same_bytes_in_any_number_of_processes(tmp_path, folder):
    again = write_photos(tmp_path / "again", LISTINGS, SEED, longest_side=SMALL, processes=2)
    assert tree(again) == tree(folder)


def test_another_seed_draws_other_photos(folder):
    first, second = (render_listing(plan_listings(2, seed)[0], seed, SMALL) for seed in (SEED, SEED + 1))
    assert {photo for photo, _ in first.values()}.isdisjoint(photo for photo, _ in second.values())


def test_more_listings_leave_the_first_ones_as_they_are():
    assert plan_listings(30, SEED)[:12] == plan_listings(12, SEED)


def test_the_truth_describes_every_file_and_nothing_else(folder, truth):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*.jpg")}
    assert files == {row["file"] for row in truth}
    assert len(truth) == len(files)
    for row in truth:
        assert row["sha256"] == hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest()
        label, name = row["file"].split("/")
        assert label in ("swift", "wagonr") and name.startswith(row["listing"] + "__")
        with Image.open(folder / row["file"]) as image:
            assert (str(image.width), str(image.height)) == (row["width"], row["height"])
            assert image.getexif().get(0x0112, 1) == int(row["orientation"])
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - files == {
        "truth.csv",
        "listings.csv",
    }


def test_listings_csv_tells_nothing_of_the_truth(folder, truth):
    rows = read_table(folder / "listings.csv")
    assert {row["file"] for row in rows} == {row["file"] for row in truth}
    assert set(rows[0]) == {"file", "listing", "city", "claim", "year", "price", "kilometres"}
    assert all(row["claim"] == row["file"].split("/")[0] for row in rows)


def test_a_listing_has_four_to_twelve_photos_and_a_tenth_of_all_is_junk():
    plan = plan_listings(400, SEED)
    assert {len(one.photos) for one in plan} == set(range(4, 13))
    kinds = [photo.kind for one in plan for photo in one.photos]
    assert 0.08 < np.mean([kind != "car" for kind in kinds]) < 0.12
    assert set(kinds) == {"car", *JUNK}
    copies = [(one, photo) for one in plan for photo in one.photos if photo.copy]
    assert {photo.copy for _, photo in copies} == set(COPIES)
    across = [photo.original.split("/")[1].split("__")[0] != one.id for one, photo in copies]
    assert 0 < np.mean(across) < 0.6
    assert len({one.id for one in plan}) == 400


def test_a_photo_without_its_car_differs_where_the_car_was():
    listing = next(one for one in plan_listings(6, SEED) if one.photos[0].kind == "car")
    name = listing.file(0)
    shown, left_out = (
        np.asarray(decode(render_listing(listing, SEED, SMALL, cars)[name][0]).convert("L"), float)
        for cars in (True, False)
    )
    height, width = shown.shape
    middle, edge = np.s_[height // 3 : height * 3 // 4, width // 3 : width * 2 // 3], np.s_[:, : width // 8]
    # correlation, because the phone meters another picture and exposes it otherwise
    alike = {part: np.corrcoef(shown[at].ravel(), left_out[at].ravel())[0, 1] for part, at in
             (("middle", middle), ("edge", edge))}  # fmt: skip
    assert alike["edge"] > 0.8 > alike["middle"] + 0.2, alike


def test_phones_of_the_shifted_city_see_bluer():
    def mean_colour(city: str) -> np.ndarray:
        plan = [replace(one, photos=one.photos[:1]) for one in plan_listings(8, SEED, cities=(city,))]
        photos = [photo for one in plan for photo, _ in render_listing(one, SEED, SMALL).values()]
        return np.mean([np.asarray(decode(photo), float).reshape(-1, 3).mean(axis=0) for photo in photos], axis=0)

    here, there = mean_colour("pune"), mean_colour(SHIFTED_CITY)
    assert there[2] / there[0] > 1.05 * here[2] / here[0], (here, there)


def test_another_colour_changes_the_photo_and_not_its_label(monkeypatch):
    listing = next(one for one in plan_listings(6, SEED) if one.photos[0].kind == "car")
    photo, row = render_listing(listing, SEED, SMALL)[listing.file(0)]
    draw = sample_listings.draw_look
    monkeypatch.setattr(sample_listings, "draw_look", lambda *given: replace(draw(*given), paint=(0.02, 0.3, 0.05)))
    recoloured, same_row = render_listing(listing, SEED, SMALL)[listing.file(0)]
    assert (row, photo == recoloured) == (same_row, False) and row["model"] == listing.claim


def test_a_mirrored_copy_keeps_its_label_and_swaps_its_sides(truth):
    by_file = {row["file"]: row for row in truth}
    mirrored = [row for row in truth if row["copy"] == "mirrored"]
    assert mirrored
    swap = {"left": "right", "right": "left"}
    for row in mirrored:
        original = by_file[row["duplicate_of"]]
        assert (row["model"], row["generation"]) == (original["model"], original["generation"])
        assert row["view"] == "_".join(swap.get(word, word) for word in original["view"].split("_"))


def test_copies_look_like_their_originals(folder, truth):
    copies = [row for row in truth if row["copy"]]
    assert copies

    def small(name):
        with Image.open(folder / name) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("L").resize((24, 18), Image.Resampling.BOX), float)

    others = [small(row["file"]) for row in truth if row["kind"] == "car" and not row["copy"]]
    for row in copies:
        copy, original = small(row["file"]), small(row["duplicate_of"])
        if row["copy"] == "mirrored":
            copy = copy[:, ::-1]
        distance = np.abs(copy - original).mean()
        assert distance <= np.median([np.abs(copy - other).mean() for other in others]) / 2, row
        assert row["sha256"] != next(one["sha256"] for one in truth if one["file"] == row["duplicate_of"])


def test_some_photos_are_stored_turned_with_exif_orientation(truth):
    turned = [row for row in truth if row["orientation"] != "1"]
    assert 0.02 < len(turned) / len(truth) < 0.2


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.model}-{shape.generation}")
def test_a_body_has_the_outer_sizes_of_the_car(shape):
    body = build_car(shape)
    corners = body.vertices[body.faces[body.layer == 0].ravel()]
    extent = corners.max(0) - corners.min(0)
    assert extent[:2] == pytest.approx((shape.length, shape.width), rel=0.03)
    assert corners[:, 2].max() == pytest.approx(shape.height, rel=0.01)


def plain_place() -> Place:
    return draw_place(np.random.default_rng(1), shifted=False)


def test_the_nose_points_to_the_left_when_the_car_is_seen_from_its_left():
    shape = SHAPES[0]
    camera = Camera.looking((0, -5, 1.3), (0, 0, 0.7), (320, 240), 1.0)
    nose, tail = camera.project(np.array([[-shape.length / 2, 0, 0.5], [shape.length / 2, 0, 0.5]]))[:, 0]
    assert nose < tail
    assert sample_listings._view(np.pi / 2) == "left"


def test_both_models_wear_the_same_colours():
    swift, wagonr = (next(shape for shape in SHAPES if shape.model == model) for model in ("swift", "wagonr"))
    looks = [draw_look(np.random.default_rng(5), shape) for shape in (swift, wagonr)]
    assert looks[0].paint == looks[1].paint and looks[0].dirt == looks[1].dirt


def test_a_car_covers_the_middle_of_its_picture():
    rng = np.random.default_rng(4)
    place = plain_place()
    camera = Camera.looking((-4, -3, 1.4), (0, 0, 0.7), (320, 240), 1.1)
    shape = SHAPES[1]
    empty = np.asarray(draw_scene(place, camera, None, None), int)
    full = np.asarray(draw_scene(place, camera, build_car(shape), draw_look(rng, shape)), int)
    changed = np.abs(full - empty).sum(-1) > 12
    assert changed[90:150, 110:210].mean() > 0.95
    assert not changed[:20].any()


def test_windows_lamps_and_wheels_are_on_the_skin_of_every_car():
    for shape in SHAPES:
        present = set(np.unique(build_car(shape).materials))
        assert {MATERIAL[name] for name in ("paint", "glass", "headlamp", "tail", "tyre", "rim", "plate")} <= present


@pytest.mark.slow
def test_an_interrupted_run_is_taken_up(tmp_path, monkeypatch):
    whole = tree(write_photos(tmp_path / "whole", 4, 5, longest_side=SMALL, processes=1))
    drawn = []
    render = sample_listings.render_listing

    def interrupted(listing, *settings):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(listing.number)
        return render(listing, *settings)

    monkeypatch.setattr(sample_listings, "render_listing", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_photos(tmp_path / "broken", 4, 5, longest_side=SMALL, processes=1)
    assert not (tmp_path / "broken").exists()
    again = []
    monkeypatch.setattr(
        sample_listings,
        "render_listing",
        lambda listing, *settings: again.append(listing.number) or render(listing, *settings),
    )
    assert tree(write_photos(tmp_path / "broken", 4, 5, longest_side=SMALL, processes=1)) == whole
    assert again == [2, 3]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="mine exists and is not empty"):
        write_photos(tmp_path / "mine", 1, 0)
    (tmp_path / "other.partial").mkdir()
    with pytest.raises(FileExistsError, match=r"other\.partial was left by a run with other settings"):
        write_photos(tmp_path / "other", 1, 0)


def test_a_full_disk_is_said_in_words(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sample_listings, "_write", full)
    with pytest.raises(OSError, match="disk full.*make room") as caught:
        write_photos(tmp_path / "out", 1, 0)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(("models", "listings"), [(("swift", "trabant"), 4), (("swift",), 0), ((), 4)])
def test_impossible_orders_are_refused(tmp_path, models, listings):
    with pytest.raises(ValueError):
        write_photos(tmp_path / "out", listings, 0, models)


def test_the_pages_together_list_every_photo_of_a_model(site):
    _, kind, page = get(site.base_url + "/used/swift")
    assert kind.startswith("text/html")
    shown = page.decode()
    assert shown.count('<article class="listing"') == min(PAGE_SIZE, len(site.found("swift", None)))
    number, more = 2, True
    while more:
        body = json.loads(get(f"{site.base_url}/api/listings?model=swift&city=&page={number}")[2])
        shown += "".join(body["listings"])
        number, more = number + 1, body["more"]
    for listing in site.found("swift", None):
        assert f'data-listing-id="{listing.id}"' in shown
        for path, _ in listing.photos:
            assert f'data-src="{path}"' in shown
    assert ' src="/photos' not in shown  # only the lazy loader asks for pictures


def test_a_city_page_lists_that_city_alone(site):
    city = site.listings[0].city
    shown = get(f"{site.base_url}/used/{site.listings[0].model}?city={city}")[2].decode()
    wanted = {one.id for one in site.found(site.listings[0].model, city)}
    assert wanted and all(f'data-listing-id="{one.id}"' not in shown for one in site.listings if one.id not in wanted)


def test_other_models_have_a_page_without_cars(site):
    status, _, page = get(site.base_url + "/used/baleno")
    assert status == 200 and b'class="listing"' not in page


def test_robots_txt_closes_the_private_photos_and_allowed_photos_knows_it(site, truth):
    robots = get(site.base_url + "/robots.txt")[2].decode()
    assert "Crawl-delay: 0" in robots
    rules = Protego.parse(robots)
    for path in site.files:
        for address in (path, site.small_path(path)):
            assert rules.can_fetch(address, "*") == (not path.startswith("/photos/private/")), address
    public = {path for path in site.files if not path.startswith("/photos/private/")}
    assert 0 < len(public) < len(site.files)
    served = {hashlib.sha256(get(site.base_url + path)[2]).hexdigest() for path in public}
    assert site.allowed_photos() == served < {row["sha256"] for row in truth}
    assert site.allowed_photos(("swift",)) < served


def test_a_thumbnail_is_small_and_upright(site):
    path = next(iter(site.files))
    status, kind, body = get(site.base_url + "/thumbs" + path)
    assert (status, kind) == (200, "image/jpeg")
    assert hashlib.sha256(body).hexdigest() not in site.allowed_photos()


@pytest.mark.parametrize(
    "path",
    ["/truth.csv", "/photos/truth.csv", "/photos/../truth.csv", "/photos/%2e%2e/truth.csv",
     "/listings.csv", "/..%2f..%2fetc",
     "//etc/passwd", "/thumbs/photos/../truth.csv", "/photos/%00", "/used/trabant"],
)  # fmt: skip
def test_nothing_but_photos_and_pages_is_served(site, path):
    status, _, body = get(site.base_url + path)
    assert status == 404
    assert b"duplicate_of" not in body and b"root:" not in body


@pytest.mark.parametrize("page", ["0", "-1", "x", "99999999999"])
def test_a_wrong_page_number_is_refused(site, page):
    assert get(f"{site.base_url}/api/listings?model=swift&page={page}")[0] == 400


def test_a_city_from_the_address_cannot_break_out_of_the_page(site):
    page = get(site.base_url + "/used/swift?city=%3C/script%3E%3Cscript%3Ealert(1)%3C/script%3E")[2]
    assert b"<script>alert" not in page


def test_the_site_logs_what_it_was_asked(site):
    get(site.base_url + "/used/swift?mark=here")
    assert ("GET", "/used/swift?mark=here", 200) in site.requests


def test_a_folder_without_listings_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="sample photos --out"):
        read_listings(tmp_path)


@pytest.mark.parametrize("kind", DRAWN)
def test_two_drawn_pictures_of_a_kind_are_no_copies_of_each_other(kind):
    drawn = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        drawn.append(DRAWN[kind](rng, scene(0, (400, 300))))  # the same street outside: what differs is the picture
    fingerprints = np.zeros(len(drawn), dtype=FINGERPRINT)
    fingerprints["grey"] = [image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR) for image in drawn]
    assert find_duplicates(fingerprints, show_progress=False).empty
