"""The photos of the study `sample_2` in one zip file: two used-car sites, listings of other models, and the truth.

Drawn as large as phones take them and then shrunk, as sites do: drawn small, edges and textures would be jagged.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from carspotter.progress import progress_bar

from .listings import LISTING_COLUMNS, SHIFTED_CITY, TRUTH_COLUMNS, write_photos
from .second_site import SecondSite
from .site import SampleSite, read_listings, rupees

DRAWN_SIDE = 512  # pixels, the longer side as drawn
KEPT_SIDE, QUALITY = 164, 75  # pixels, the shorter side as kept; of WebP
OTHER_MODELS = ("alto", "baleno", "dzire", "ertiga", "brezza")
ORDERS = {  # folder in the archive: what `write_photos` draws for it
    "sample": {"listings": 620, "seed": 2026},
    "hyderabad": {"listings": 130, "seed": 2027, "cities": (SHIFTED_CITY,)},
    "others": {"listings": 20, "seed": 2028, "models": OTHER_MODELS},
}
SITES = (SampleSite, SecondSite)  # `others` is for the photo check alone: no site shows it
TIME = "2026-11-28T12:00:00+00:00"  # of the journals and reviews: the same bytes whenever the archive is made
# What a reviewer would answer about each kind of junk: the reasons of `carspotter review`.
REASONS = {
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


def write_archive(out: Path, drawn: Path) -> Path:
    """Write the archive to `out` and return it; photos are drawn into the folder `drawn` unless they are there.

    The archive holds `<site>/<claim>/<listing>__<NN>.webp`, `<site>/listings.csv` and `<site>/journal.jsonl` as the
    scraper would have written it, `reviews.jsonl` with a reject for each junk photo, and `truth.csv`. Its bytes depend
    on the renderer and on Pillow's version only.
    """
    for name, order in ORDERS.items():
        if not (drawn / name).exists():
            write_photos(drawn / name, longest_side=DRAWN_SIDE, **order)
    truth = []
    part = out.with_name(out.name + ".part")
    with zipfile.ZipFile(part, "w") as archive:
        for name in ORDERS:
            truth += _pack(archive, drawn / name, name)
        _add(archive, "truth.csv", _table(TRUTH_COLUMNS, truth))
        rejects = [
            {"sha256": row["sha256"], "reviewer": "renderer", "verdict": "reject", "label": None,
             "reason": REASONS[row["kind"]], "time": TIME}
            for row in truth if row["kind"] != "car"
        ]  # fmt: skip
        _add(archive, "reviews.jsonl", _lines(rejects))
    by_file = {row["file"]: row for row in truth}
    journals = {site.name: _lines(_journal(zipfile.Path(part), site, by_file)) for site in SITES}
    with zipfile.ZipFile(part, "a") as archive:
        for name, lines in journals.items():
            _add(archive, f"{name}/journal.jsonl", lines)
    part.replace(out)
    return out


def shrink(photo: bytes) -> bytes:
    """Return JPEG bytes as WebP whose shorter side has `KEPT_SIDE` pixels at most; Exif orientation is kept."""
    image = Image.open(io.BytesIO(photo), formats=["JPEG"])
    exif = image.getexif()
    scale = min(1.0, KEPT_SIDE / min(image.size))
    small = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY, method=6, **({"exif": exif} if exif else {}))
    return buffer.getvalue()


def _pack(archive: zipfile.ZipFile, folder: Path, name: str) -> list[dict]:
    """Add the photos and listings.csv of a folder written by `write_photos`; return its truth, made to fit."""
    with open(folder / "truth.csv", newline="", encoding="utf-8") as file:
        truth = list(csv.DictReader(file))
    with progress_bar(len(truth), f"pack {name}", "photos") as bar:
        for row in truth:
            photo = shrink((folder / row["file"]).read_bytes())
            for column in ("file", "duplicate_of"):
                row[column] = row[column] and f"{name}/{row[column].removesuffix('.jpg')}.webp"
            with Image.open(io.BytesIO(photo)) as image:
                row.update(sha256=hashlib.sha256(photo).hexdigest(), width=image.width, height=image.height)
            _add(archive, row["file"], photo)
            bar.update()
    with open(folder / "listings.csv", newline="", encoding="utf-8") as file:
        listed = [row | {"file": row["file"].removesuffix(".jpg") + ".webp"} for row in csv.DictReader(file)]
    _add(archive, f"{name}/listings.csv", _table(LISTING_COLUMNS, listed))
    return truth


def _journal(archive: zipfile.Path, site: type[SampleSite], truth: dict[str, dict]) -> Iterable[dict]:
    """Yield the lines that a crawl of the site with its file in `scraper/sites/` writes, in the order of the pages."""
    base_url = f"http://127.0.0.1:{site.usual_port}"
    for listing in sorted(read_listings(archive / site.name, site.public, site.private), key=lambda one: one.model):
        for path, file in listing.photos:
            photo = truth[f"{site.name}/{file}"]
            allowed = not path.startswith(site.private)
            size = len((archive / site.name / file).read_bytes())
            yield {
                "url": base_url + path,
                "page_url": base_url + site.link_of(listing),
                "listing": listing.id,
                "label": listing.model,
                "city": listing.city.title(),
                "title": site.title_of(listing),
                "price": rupees(listing.price),
                "year": listing.year,
                "status": "fetched" if allowed else "refused",
                "reason": None if allowed else "robots.txt forbids it",
                "sha256": photo["sha256"] if allowed else None,
                "bytes": size if allowed else None,
                "width": photo["width"] if allowed else None,
                "height": photo["height"] if allowed else None,
                "time": TIME,
            }


def _add(archive: zipfile.ZipFile, name: str, content: bytes | str) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980-01-01
    entry.create_system, entry.external_attr = 3, 0o644 << 16  # the same on every system
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(".webp") else zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def _table(columns: tuple[str, ...], rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
