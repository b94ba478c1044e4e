"""The photos of a used-car market, listing by listing, in class folders by the model that each listing claims.

Every listing draws from its own random numbers, seeded by the seed and its position, so the files do not depend on the
number of processes. Photos of a listing show one car at one place; about a tenth of all are junk, and some are copies.
"""

import csv
import errno
import hashlib
import io
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from carspotter.paths import atomic_write
from carspotter.progress import progress_bar

from .bodies import build_car
from .junk import DRAWN
from .phone import RENDERED, decode, develop, draw_phone, encode, fitted
from .raster import Camera, draw_look
from .scenes import Upright, draw_place, draw_scene
from .shapes import SHAPES

VERSION = 3  # raise when the same seed is meant to give other photos
CITIES = ("pune", "mumbai", "delhi", "bengaluru", "chennai", "jaipur")
SHIFTED_CITY = "hyderabad"  # other phones, light, places and photographers
JUNK = {  # the reason that a reviewer would give for each kind, one of those of `carspotter review`
    "interior": "interior",
    "dashboard": "interior",
    "engine": "interior",
    "wheel": "close-up",
    "document": "document",
    "empty_street": "no car",
    "other_model": "other model",
    "too_dark": "poor quality",
    "too_blurred": "poor quality",
    "thumbnail": "poor quality",
}
JUNK_SHARE = 0.10
LONGEST_SIDE = 1600  # pixels; a smaller limit draws faster
COPIES = ("reencoded", "rescaled", "cropped", "mirrored", "watermarked")
COPY_SHARE = 0.06  # of all photos; a third of the copies stand in another listing than their original
VIEWS = ("front", "front_left", "left", "rear_left", "rear", "rear_right", "right", "front_right")


@dataclass(frozen=True)
class Photographers:
    """How people of a place take photos of cars: ranges are drawn from evenly."""

    view_angle: tuple[float, float]  # degrees across the longer side: phones' lenses
    filled: tuple[float, float]  # share of the picture's width that the car takes; above 1 it is cut off
    nearest: float  # metres from the middle of the car
    raised: float  # share taken from a step or a balcony
    something_in_front: float  # share with a pole, a passer-by or leaves before the car


EVERYDAY = Photographers((54, 68), (0.56, 0.98), 3.0, 0.08, 0.13)
# Yards of dealers, too narrow to step back in: wide lenses from near, from a step, across the bonnet of the next car.
IN_NARROW_YARDS = Photographers((64, 92), (0.7, 1.25), 2.3, 0.35, 0.4)


@dataclass(frozen=True)
class PlannedPhoto:
    kind: str  # "car" or one of JUNK
    copy: str = ""  # one of COPIES
    original: str = ""  # the file that it copies


@dataclass(frozen=True)
class PlannedListing:
    """What a listing will hold, fixed before anything is drawn."""

    number: int
    id: str
    claim: str
    city: str
    generation: int
    year: int
    price: int
    kilometres: int
    photos: tuple[PlannedPhoto, ...]

    def file(self, number: int) -> str:
        return f"{self.claim}/{self.id}__{number + 1:02d}.jpg"


def plan_listings(
    listings: int, seed: int, models: tuple[str, ...] = ("swift", "wagonr"), cities: tuple[str, ...] = CITIES
) -> list[PlannedListing]:
    """Draw what every listing holds: claim, city, year, price, kinds of photos and copies.

    Raises ValueError for a model that has no shape, or fewer than one listing.
    """
    known = sorted({shape.model for shape in SHAPES})
    if unknown := sorted(set(models) - set(known)):
        raise ValueError(f"no shape for model {', '.join(unknown)}; choose from {', '.join(known)}")
    if listings < 1 or not models:
        raise ValueError(f"{listings} listings of {len(models)} models: at least one of each is needed")
    planned: list[PlannedListing] = []
    for number in range(listings):
        rng = np.random.default_rng([seed, number, 1])
        claim = models[number % len(models)]
        shapes = [shape for shape in SHAPES if shape.model == claim]
        shape = shapes[rng.integers(len(shapes))]
        year = int(rng.integers(shape.years[0], shape.years[1] + 1))
        kilometres = int(rng.gamma(4, 2500) * (2025 - year) / 2 + 3000) // 100 * 100
        price = int(620_000 * 0.91 ** (2024 - year) * rng.uniform(0.8, 1.2)) // 5000 * 5000
        # the first photo shows the car on every site; the others make up for it
        spoiled = rng.random(rng.integers(4, 13)) < JUNK_SHARE * 8 / 7
        kinds = [str(rng.choice(list(JUNK))) if place and junk else "car" for place, junk in enumerate(spoiled)]
        photos = [PlannedPhoto(kind) for kind in kinds]
        identity = f"{10_000_000 + (number * 7_368_787 + seed * 104_729) % 89_999_999}"
        facts = str(rng.choice(cities)), shape.generation, year, price, kilometres
        listing = PlannedListing(number, identity, claim, *facts, tuple(photos))
        earlier = [other for other in planned if other.claim == claim]
        for place in range(1, len(photos)):
            if kinds[place] != "car" or rng.random() >= COPY_SHARE / (1 - JUNK_SHARE):
                continue
            source = earlier[rng.integers(len(earlier))] if earlier and rng.random() < 0.35 else listing
            own = photos[:place] if source is listing else source.photos
            originals = [index for index, photo in enumerate(own) if photo.kind == "car" and not photo.copy]
            if originals:
                copy, original = str(rng.choice(COPIES)), source.file(originals[rng.integers(len(originals))])
                photos[place] = PlannedPhoto("car", copy, original)
        planned.append(replace(listing, photos=tuple(photos)))
    return planned


def _view(azimuth: float) -> str:
    """Name the side seen from `azimuth` radians, 0 in front of the nose, a quarter turn at the car's left."""
    return VIEWS[round(azimuth / (np.pi / 4)) % 8]


def _aim(rng: np.random.Generator, shape, size: tuple[int, int], photographers: Photographers) -> tuple[Camera, str]:
    """Draw where the photographer stands: mostly at a corner or a side of the car, at the height of eyes."""
    weights = np.array([0.12, 0.2, 0.1, 0.12, 0.1, 0.1, 0.08, 0.18])
    azimuth = rng.choice(8, p=weights / weights.sum()) * np.pi / 4 + rng.normal(0, 0.19)
    view_angle = np.radians(rng.uniform(*photographers.view_angle))
    across = abs(np.sin(azimuth)) * shape.length + abs(np.cos(azimuth)) * shape.width
    narrow = min(size[0] / max(size), 1)
    filled = rng.uniform(*photographers.filled) if narrow == 1 else rng.uniform(0.75, 1.1)
    distance = across / 2 / (np.tan(view_angle / 2) * narrow * filled)
    distance = np.clip(distance + abs(np.cos(azimuth)) * shape.length * 0.42 + 0.35, photographers.nearest, 11.0)
    at_eyes = rng.random() < 1 - photographers.raised
    height = np.clip(rng.normal(1.45, 0.28), 0.6, 2.3) if at_eyes else rng.uniform(2.3, 3.4)
    slip = rng.normal(0, 0.16, 3) * distance / 5
    target = (slip[0], slip[1], 0.62 + slip[2] * 0.8)
    position = (-np.cos(azimuth) * distance, -np.sin(azimuth) * distance, height)
    return Camera.looking(position, target, size, view_angle, rng.normal(0, 0.028)), _view(azimuth)


def _in_front(rng: np.random.Generator, camera: Camera, share: float) -> tuple[Upright, ...]:
    """Now and then put a pole, a passer-by or leaves between the camera and the car, off its middle."""
    if rng.random() > share:
        return ()
    kind = str(rng.choice(["pole", "person", "person", "bush", "scooter"]))
    near = rng.uniform(0.25, 0.5) if kind != "person" else rng.uniform(0.1, 0.35)
    side = camera.axes[0][:2] * rng.choice([-1, 1]) * rng.uniform(0.5, 1.5)
    tall = {"pole": 5.0, "person": rng.uniform(1.5, 1.8), "bush": rng.uniform(0.5, 0.9), "scooter": 1.1}
    spot = tuple(camera.position[:2] * near + side)
    return (Upright(spot, tall[kind], kind, rng.integers(6), rng.random() < 0.5),)


def _wheel_close_up(rng: np.random.Generator, shape, size: tuple[int, int]) -> Camera:
    axle = shape.overhang + rng.choice([0, 1]) * shape.wheelbase - shape.length / 2
    side = rng.choice([-1, 1])
    spot = np.array([axle, side * shape.width / 2, shape.wheel_radius])
    eye = spot + (rng.normal(0, 0.3), side * rng.uniform(0.75, 1.0), rng.uniform(0.2, 0.7))
    return Camera.looking(eye, spot + rng.normal(0, 0.06, 3), size, np.radians(62))


def render_listing(
    listing: PlannedListing, seed: int, longest_side: int, cars: bool = True
) -> dict[str, tuple[bytes, dict]]:
    """Draw the photos of a listing that are not copies: file name -> (JPEG bytes, row of the truth).

    Without `cars` the car on sale and its shadow are left out of the same views: what a model learns from those, it
    has learnt from the place.
    """
    rng = np.random.default_rng([seed, listing.number, 2])
    shape = next(s for s in SHAPES if s.model == listing.claim and s.generation == listing.generation)
    shifted = listing.city.lower() == SHIFTED_CITY
    look, place, phone = draw_look(rng, shape), draw_place(rng, shifted), draw_phone(rng, shifted)
    photographers = IN_NARROW_YARDS if shifted else EVERYDAY
    upright_share = rng.random()
    drawn = {}
    for index, photo in enumerate(listing.photos):
        rng = np.random.default_rng([seed, listing.number, 3, index])  # a copy more or less changes no other photo
        if photo.copy:
            continue
        size = fitted(phone.size, longest_side)
        if rng.random() < (0.75 if upright_share < 0.12 else 0.06):
            size = size[::-1]
        scene = fitted(size, RENDERED)
        exposure, blur = float(np.exp(rng.normal(0, 0.12))), rng.gamma(1.2, 0.2)
        shown, shown_look, view = shape, look, ""
        if photo.kind == "other_model":
            others = [s for s in SHAPES if s.model != listing.claim]
            shown = others[rng.integers(len(others))]
            shown_look = draw_look(rng, shown)
        if photo.kind in DRAWN:
            camera, _ = _aim(rng, shape, (400, 300), photographers)
            image = DRAWN[photo.kind](rng, draw_scene(place, camera)).resize(scene, Image.Resampling.BICUBIC)
        elif photo.kind == "empty_street":
            image = draw_scene(replace(place, parked=()), _aim(rng, shape, scene, photographers)[0])
        elif photo.kind == "wheel":
            image = draw_scene(replace(place, parked=()), _wheel_close_up(rng, shape, scene), build_car(shape), look)
        else:
            camera, view = _aim(rng, shown, scene, photographers)
            car = build_car(shown) if cars else None
            image = draw_scene(place, camera, car, shown_look, _in_front(rng, camera, photographers.something_in_front))
        if photo.kind == "too_dark":
            exposure = rng.uniform(0.06, 0.16)
        elif photo.kind == "too_blurred":
            blur = rng.uniform(9, 18)
        elif photo.kind == "thumbnail":
            size = (160, 120) if size[0] > size[1] else (120, 160)
        image = develop(image, phone, rng, size, exposure, blur)
        orientation = int(rng.choice([6, 8, 3], p=[0.6, 0.2, 0.2])) if rng.random() < 0.09 else 1
        quality = int(np.clip(phone.quality + rng.integers(-3, 4), 60, 92))
        no_car = photo.kind in DRAWN or photo.kind == "empty_street"
        model, generation = ("", "") if no_car else (shown.model, shown.generation)
        row = {"file": listing.file(index), "sha256": "", "kind": photo.kind, "model": model, "generation": generation}
        row |= {"view": view, "listing": listing.id, "city": listing.city}
        row |= {"copy": "", "duplicate_of": "", "orientation": orientation}
        drawn[row["file"]] = encode(image, quality, orientation), row
    return drawn


def _copied(kind: str, original: bytes, rng: np.random.Generator) -> bytes:
    image = decode(original)
    width, height = image.size
    quality = int(rng.integers(60, 90))
    if kind == "rescaled":
        scale = rng.uniform(0.5, 0.85)
        image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.LANCZOS)
    elif kind == "cropped":
        left, top, right, bottom = rng.uniform(0.01, 0.08, 4) * (width, height, width, height)
        image = image.crop((int(left), int(top), int(width - right), int(height - bottom)))
    elif kind == "mirrored":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif kind == "watermarked":
        mark = Image.new("RGBA", image.size, (255, 255, 255, 0))
        place = (int(width * rng.uniform(0.2, 0.8)), int(height * rng.choice([0.08, 0.5, 0.92])))
        words, size = "gaadi-bazaar.example", max(width // 18, 12)
        ImageDraw.Draw(mark).text(place, words, fill=(255, 255, 255, 120), font_size=size, anchor="mm")
        image = Image.alpha_composite(image.convert("RGBA"), mark).convert("RGB")
    return encode(image, quality)


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_write(path) as part:
        part.write_bytes(content)


def _render_into(folder: Path, seed: int, longest_side: int, listing: PlannedListing) -> list[dict]:
    """Draw a listing into the folder, or only describe it when an interrupted run has drawn it already."""
    done = folder / ".rows" / f"{listing.number}.json"
    if done.exists():
        return json.loads(done.read_text())
    drawn = render_listing(listing, seed, longest_side)
    for name, (photo, _) in drawn.items():
        _write(folder / name, photo)
    rows = [row for _, row in drawn.values()]
    _write(done, json.dumps(rows).encode())
    return rows


def _copy_into(folder: Path, seed: int, originals: dict[str, dict], listing: PlannedListing) -> list[dict]:
    rows = []
    for index, photo in enumerate(listing.photos):
        if not photo.copy:
            continue
        rng = np.random.default_rng([seed, listing.number, 4, index])
        name, view = listing.file(index), originals[photo.original]["view"]
        if photo.copy == "mirrored" and view:
            view = VIEWS[-VIEWS.index(view)]
        _write(folder / name, _copied(photo.copy, (folder / photo.original).read_bytes(), rng))
        row = {"file": name, "view": view, "listing": listing.id, "city": listing.city, "orientation": 1}
        rows.append(originals[photo.original] | row | {"copy": photo.copy, "duplicate_of": photo.original})
    return rows


def describe(row: dict, photo: bytes) -> None:
    """Put into a row of the truth what the bytes of the photo tell."""
    with Image.open(io.BytesIO(photo)) as image:
        row.update(sha256=hashlib.sha256(photo).hexdigest(), width=image.width, height=image.height)


def table(rows: list[dict]) -> str:
    """Return rows as CSV, under the keys of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_photos(
    out: str | os.PathLike,
    listings: int,
    seed: int,
    models: tuple[str, ...] = ("swift", "wagonr"),
    *,
    cities: tuple[str, ...] = CITIES,
    longest_side: int = LONGEST_SIDE,
    processes: int | None = None,
) -> Path:
    """Write photos as `<claim>/<listing>__<NN>.jpg`, with truth.csv and listings.csv; return the folder.

    `longest_side` caps the photos' size in pixels: small photos are quick to draw.
    The same seed gives the same bytes on one machine, whatever the number of processes. The folder gets its name
    only when it is whole; until then it is `<name>.partial`, and the same call takes up an interrupted run there.
    Raises FileExistsError when `out` holds something or `<name>.partial` belongs to another call, ValueError for
    a model without a shape, OSError with the folder's name when the disk is full.
    """
    out = Path(out)
    plan = plan_listings(listings, seed, models, cities)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; choose another folder or remove it first")
    folder = out.with_name(out.name + ".partial")
    call = {"version": VERSION, "listings": listings, "seed": seed, "longest_side": longest_side}
    call |= {"models": list(models), "cities": list(cities)}
    marker = folder / ".call.json"
    if folder.exists() and not (marker.exists() and json.loads(marker.read_text()) == call):
        raise FileExistsError(f"{folder} was left by a run with other settings; remove it, then try again")
    try:
        _write(marker, json.dumps(call).encode())
        rows = _draw_all(folder, plan, seed, longest_side, processes or os.cpu_count() or 1)
        for row in rows:
            describe(row, (folder / row["file"]).read_bytes())
        _write(folder / "truth.csv", table(sorted(rows, key=lambda row: row["file"])).encode())
        listed = [
            {"file": listing.file(index), "listing": listing.id}
            | {name: getattr(listing, name) for name in ("city", "claim", "year", "price", "kilometres")}
            for listing in plan
            for index in range(len(listing.photos))
        ]
        _write(folder / "listings.csv", table(listed).encode())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        message = f"disk full; what is drawn stays in {folder}: make room and run the same command"
        raise OSError(errno.ENOSPC, message, str(folder)) from error
    shutil.rmtree(folder / ".rows")
    marker.unlink()
    if out.exists():
        out.rmdir()
    folder.rename(out)
    return out


def _draw_all(folder: Path, plan: list[PlannedListing], seed: int, longest_side: int, processes: int) -> list[dict]:
    rows: list[dict] = []
    total = sum(len(listing.photos) for listing in plan)
    # fresh interpreters: a forked copy of a process that has loaded a framework with threads may hang
    fresh = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(plan)), fresh) if processes > 1 and len(plan) > 3 else None
    try:
        run = pool.map if pool else map
        with progress_bar(total, "draw", "photos") as bar:
            for drawn in run(partial(_render_into, folder, seed, longest_side), plan):
                rows += drawn
                bar.update(len(drawn))
            originals = {row["file"]: row for row in rows}
            for listing in plan:
                copies = _copy_into(folder, seed, originals, listing)
                rows += copies
                bar.update(len(copies))
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return rows
