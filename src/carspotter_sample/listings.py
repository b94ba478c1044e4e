"""The photos of a used-car market, listing by listing, in class folders by the model that each listing claims.

Every listing draws from its own random numbers, seeded by the seed and its position, so the files do not depend on the
number of processes. Photos of a listing show one car at one place; about a tenth of all are junk, and some are copies.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from carspotter.progress import progress_bar

from .bodies import build_car
from .junk import DRAWN
from .phone import decode, develop, draw_phone, encode, rendered_size
from .raster import Camera
from .scenes import Upright, draw_look, draw_place, draw_scene
from .shapes import SHAPES

VERSION = 3  # raise when the same seed is meant to give other photos
CITIES = ("pune", "mumbai", "delhi", "bengaluru", "chennai", "jaipur")
SHIFTED_CITY = "hyderabad"  # other phones, light, places and photographers
JUNK = (
    "interior",
    "dashboard",
    "engine",
    "wheel",
    "document",
    "empty_street",
    "other_model",
    "too_dark",
    "too_blurred",
    "thumbnail",
)
JUNK_SHARE = 0.10
LONGEST_SIDE = 1600  # pixels; a smaller limit draws faster
COPIES = ("reencoded", "rescaled", "cropped", "mirrored", "watermarked")
COPY_SHARE = 0.06  # of all photos; a third of the copies stand in another listing than their original
VIEWS = ("front", "front_left", "left", "rear_left", "rear", "rear_right", "right", "front_right")
TRUTH_COLUMNS = (
    "file",
    "sha256",
    "kind",
    "model",
    "generation",
    "view",
    "listing",
    "city",
    "copy",
    "duplicate_of",
    "orientation",
    "width",
    "height",
)
LISTING_COLUMNS = ("file", "listing", "city", "claim", "year", "price", "kilometres")


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
        kinds = [str(rng.choice(JUNK)) if place and junk else "car" for place, junk in enumerate(spoiled)]
        photos = [PlannedPhoto(kind) for kind in kinds]
        identity = f"{10_000_000 + (number * 7_368_787 + seed * 104_729) % 89_999_999}"
        listing = PlannedListing(
            number, identity, claim, str(rng.choice(cities)), shape.generation, year, price, kilometres, tuple(photos)
        )
        earlier = [other for other in planned if other.claim == claim]
        for place in range(1, len(photos)):
            if kinds[place] != "car" or rng.random() >= COPY_SHARE / (1 - JUNK_SHARE):
                continue
            source = earlier[rng.integers(len(earlier))] if earlier and rng.random() < 0.35 else listing
            own = photos[:place] if source is listing else source.photos
            originals = [index for index, photo in enumerate(own) if photo.kind == "car" and not photo.copy]
            if originals:
                photos[place] = PlannedPhoto(
                    "car", str(rng.choice(COPIES)), source.file(originals[rng.integers(len(originals))])
                )
        planned.append(PlannedListing(**{**asdict(listing), "photos": tuple(photos)}))
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
    distance = (
        across / 2 / (np.tan(view_angle / 2) * narrow * filled) + abs(np.cos(azimuth)) * shape.length * 0.42 + 0.35
    )
    distance = float(np.clip(distance, photographers.nearest, 11.0))
    at_eyes = rng.random() < 1 - photographers.raised
    height = float(np.clip(rng.normal(1.45, 0.28), 0.6, 2.3)) if at_eyes else float(rng.uniform(2.3, 3.4))
    slip = rng.normal(0, 0.16, 3) * distance / 5
    target = (slip[0], slip[1], 0.62 + slip[2] * 0.8)
    position = (-np.cos(azimuth) * distance, -np.sin(azimuth) * distance, height)
    return Camera.looking(position, target, size, view_angle, float(rng.normal(0, 0.028))), _view(azimuth)


def _in_front(rng: np.random.Generator, camera: Camera, share: float) -> tuple[Upright, ...]:
    """Now and then put a pole, a passer-by or leaves between the camera and the car, off its middle."""
    if rng.random() > share:
        return ()
    kind = str(rng.choice(["pole", "person", "person", "bush", "scooter"]))
    near = rng.uniform(0.25, 0.5) if kind != "person" else rng.uniform(0.1, 0.35)
    side = np.array([camera.axes[0][0], camera.axes[0][1]]) * rng.choice([-1, 1]) * rng.uniform(0.5, 1.5)
    spot = camera.position[:2] * near + side
    height = {"pole": 5.0, "person": rng.uniform(1.5, 1.8), "bush": rng.uniform(0.5, 0.9), "scooter": 1.1}[kind]
    return (
        Upright((float(spot[0]), float(spot[1])), float(height), kind, int(rng.integers(6)), bool(rng.random() < 0.5)),
    )


def _wheel_close_up(rng: np.random.Generator, shape, size: tuple[int, int]) -> Camera:
    axle = shape.overhang + rng.choice([0, 1]) * shape.wheelbase - shape.length / 2
    side = rng.choice([-1, 1])
    spot = np.array([axle, side * shape.width / 2, shape.wheel_radius])
    eye = spot + (rng.normal(0, 0.3), side * rng.uniform(0.75, 1.0), rng.uniform(0.2, 0.7))
    return Camera.looking(eye, spot + rng.normal(0, 0.06, 3), size, np.radians(62))


def render_listing(
    listing: PlannedListing, seed: int, longest_side: int = LONGEST_SIDE, cars: bool = True
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
        shrink = min(1.0, longest_side / max(phone.size))
        size = round(phone.size[0] * shrink), round(phone.size[1] * shrink)
        if rng.random() < (0.75 if upright_share < 0.12 else 0.06):
            size = size[::-1]
        scene = rendered_size(size)
        model, generation, view = listing.claim, listing.generation, ""
        exposure, blur = float(np.exp(rng.normal(0, 0.12))), float(rng.gamma(1.2, 0.2))
        shown, shown_look = shape, look
        if photo.kind == "other_model":
            others = [s for s in SHAPES if s.model != listing.claim]
            shown = others[rng.integers(len(others))]
            shown_look = draw_look(rng, shown)
            model, generation = shown.model, shown.generation
        if photo.kind in DRAWN:
            camera, _ = _aim(rng, shape, (400, 300), photographers)
            outside = draw_scene(place, camera, None, None)
            image = DRAWN[photo.kind](rng, outside).resize(rendered_size(size), Image.Resampling.BICUBIC)
            model = generation = ""
        elif photo.kind == "empty_street":
            camera, _ = _aim(rng, shape, scene, photographers)
            image = draw_scene(replace(place, parked=()), camera, None, None)
            model = generation = ""
        elif photo.kind == "wheel":
            image = draw_scene(replace(place, parked=()), _wheel_close_up(rng, shape, scene), build_car(shape), look)
        else:
            camera, view = _aim(rng, shown, scene, photographers)
            car = build_car(shown) if cars else None
            image = draw_scene(place, camera, car, shown_look, _in_front(rng, camera, photographers.something_in_front))
        if photo.kind == "too_dark":
            exposure = float(rng.uniform(0.06, 0.16))
        elif photo.kind == "too_blurred":
            blur = float(rng.uniform(9, 18))
        elif photo.kind == "thumbnail":
            size = (160, 120) if size[0] > size[1] else (120, 160)
        image = develop(image, phone, rng, size, exposure=exposure, blur=blur)
        orientation = int(rng.choice([6, 8, 3], p=[0.6, 0.2, 0.2])) if rng.random() < 0.09 else 1
        name = listing.file(index)
        row = {
            "file": name,
            "kind": photo.kind,
            "model": model,
            "generation": generation,
            "view": view,
            "listing": listing.id,
            "city": listing.city,
            "copy": "",
            "duplicate_of": "",
            "orientation": orientation,
        }
        drawn[name] = encode(image, int(np.clip(phone.quality + rng.integers(-3, 4), 60, 92)), orientation), row
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
        ImageDraw.Draw(mark).text(
            place, "gaadi-bazaar.example", fill=(255, 255, 255, 120), font_size=max(width // 18, 12), anchor="mm"
        )
        image = Image.alpha_composite(image.convert("RGBA"), mark).convert("RGB")
    return encode(image, quality)


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(path.name + ".part")
    partial_path.write_bytes(content)
    partial_path.replace(path)


def _render_into(folder: str, seed: int, longest_side: int, cars: bool, listing: PlannedListing) -> list[dict]:
    """Draw a listing into the folder, or only describe it when an interrupted run has drawn it already."""
    done = Path(folder) / ".rows" / f"{listing.number}.json"
    if done.exists():
        return json.loads(done.read_text())
    rows = []
    for name, (photo, row) in render_listing(listing, seed, longest_side, cars).items():
        _write(Path(folder) / name, photo)
        rows.append(row)
    _write(done, json.dumps(rows).encode())
    return rows


def _copy_into(folder: str, seed: int, originals: dict[str, dict], listing: PlannedListing) -> list[dict]:
    rows = []
    for index, photo in enumerate(listing.photos):
        if not photo.copy:
            continue
        rng = np.random.default_rng([seed, listing.number, 4, index])
        name, view = listing.file(index), originals[photo.original]["view"]
        if photo.copy == "mirrored" and view:
            view = VIEWS[-VIEWS.index(view)]
        _write(Path(folder) / name, _copied(photo.copy, (Path(folder) / photo.original).read_bytes(), rng))
        rows.append(
            {
                **originals[photo.original],
                "file": name,
                "view": view,
                "listing": listing.id,
                "city": listing.city,
                "copy": photo.copy,
                "duplicate_of": photo.original,
                "orientation": 1,
            }
        )
    return rows


def _tables(folder: Path, plan: Iterable[PlannedListing], rows: list[dict]) -> None:
    for row in rows:
        content = (folder / row["file"]).read_bytes()
        with Image.open(folder / row["file"]) as image:
            row.update(sha256=hashlib.sha256(content).hexdigest(), width=image.width, height=image.height)
    rows.sort(key=lambda row: row["file"])
    listed = [
        {
            "file": listing.file(index),
            "listing": listing.id,
            "city": listing.city,
            "claim": listing.claim,
            "year": listing.year,
            "price": listing.price,
            "kilometres": listing.kilometres,
        }
        for listing in plan
        for index in range(len(listing.photos))
    ]
    for name, columns, table in (("truth.csv", TRUTH_COLUMNS, rows), ("listings.csv", LISTING_COLUMNS, listed)):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)


def write_photos(
    out: str | os.PathLike,
    listings: int,
    seed: int,
    models: tuple[str, ...] = ("swift", "wagonr"),
    *,
    cities: tuple[str, ...] = CITIES,
    longest_side: int = LONGEST_SIDE,
    cars: bool = True,
    processes: int | None = None,
    show_progress: bool = True,
) -> Path:
    """Write photos as `<claim>/<listing>__<NN>.jpg`, with truth.csv and listings.csv; return the folder.

    `longest_side` caps the photos' size in pixels: small photos are quick to draw. Without `cars` the cars on sale are
    left out, for the test that places and phones do not give the model away.
    The same seed gives the same bytes on one machine, whatever the number of processes. The folder gets its name
    only when it is whole; until then it is `<name>.partial`, and the same call takes up an interrupted run there.
    Raises FileExistsError when `out` holds something or `<name>.partial` belongs to another call, ValueError for
    a model without a shape, OSError with the folder's name when the disk is full.
    """
    out = Path(out)
    plan = plan_listings(listings, seed, tuple(models), tuple(cities))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; choose another folder or remove it first")
    folder = out.with_name(out.name + ".partial")
    call = {
        "version": VERSION,
        "listings": listings,
        "seed": seed,
        "models": list(models),
        "cities": list(cities),
        "longest_side": longest_side,
        "cars": cars,
    }
    marker = folder / ".call.json"
    if folder.exists() and not (marker.exists() and json.loads(marker.read_text()) == call):
        raise FileExistsError(f"{folder} was left by a run with other settings; remove it, then try again")
    try:
        _write(marker, json.dumps(call).encode())
        rows = _draw_all(
            folder, plan, seed, longest_side, cars, min(processes or os.cpu_count() or 1, listings), show_progress
        )
        _tables(folder, plan, rows)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC, f"disk full; what is drawn stays in {folder}: make room and run the same command", str(folder)
        ) from error
    for left in (folder / ".rows").iterdir():
        left.unlink()
    (folder / ".rows").rmdir()
    marker.unlink()
    if out.exists():
        out.rmdir()
    folder.rename(out)
    return out


def _draw_all(
    folder: Path,
    plan: list[PlannedListing],
    seed: int,
    longest_side: int,
    cars: bool,
    processes: int,
    show_progress: bool,
) -> list[dict]:
    rows: list[dict] = []
    total = sum(len(listing.photos) for listing in plan)
    # fresh interpreters: a forked copy of a process that has loaded a framework with threads may hang
    pool = (
        ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
        if processes > 1 and len(plan) > 3
        else None
    )
    try:
        run = pool.map if pool else map
        with progress_bar(total, "draw", "photos", show_progress) as bar:
            for drawn in run(partial(_render_into, str(folder), seed, longest_side, cars), plan):
                rows += drawn
                bar.update(len(drawn))
            originals = {row["file"]: row for row in rows}
            for listing in plan:
                copies = _copy_into(str(folder), seed, originals, listing)
                rows += copies
                bar.update(len(copies))
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return rows
