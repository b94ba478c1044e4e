"""The photos of the study `sample_2` in one zip file: two used-car sites, listings of other models, the truth.

Drawn as large as phones take them and then shrunk, as sites do: drawn small, edges and textures would be jagged.
"""

import csv
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from carspotter.paths import atomic_write
from carspotter.progress import progress_bar

from .listings import JUNK, SHIFTED_CITY, describe, table, write_photos
from .second_site import SecondSite
from .site import ARCHIVE, OTHER_MODELS, SampleSite, read_listings, rupees

DRAWN_SIDE = 512  # pixels, the longer side as drawn
KEPT_SIDE, QUALITY = 164, 75  # pixels, the shorter side as kept; of WebP
ORDERS = {  # folder in the archive: what `write_photos` draws for it
    "sample": {"listings": 620, "seed": 2026},
    "hyderabad": {"listings": 130, "seed": 2027, "cities": (SHIFTED_CITY,)},
    "others": {"listings": 20, "seed": 2028, "models": OTHER_MODELS},
}
SITES = (SampleSite, SecondSite)  # `others` is for the photo check alone: no site shows it
TIME = "2026-11-28T12:00:00+00:00"  # of the journals and reviews: the same bytes whenever the archive is made
COLUMNS, CELL, CAPTION = 6, (208, 156), 20  # of the contact sheet; pixels
SHOWN_JUNK = ("dashboard", "wheel", "document", "empty_street", "engine", "too_blurred")
ROWS = (  # caption, the folder in the archive, what is shown: models or kinds of junk, in turn
    ("Swift", "sample", ("swift",)),
    ("WagonR", "sample", ("wagonr",)),
    ("the second site", "hyderabad", ("swift", "wagonr")),
    ("other cars", "others", OTHER_MODELS),
    ("junk photos: about a tenth of all", "sample", SHOWN_JUNK),
)


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
    reject = {"reviewer": "renderer", "verdict": "reject", "label": None}
    with atomic_write(out) as part:
        with zipfile.ZipFile(part, "w") as archive:
            for name in ORDERS:
                truth += _pack(archive, drawn / name, name)
            _add(archive, "truth.csv", table(truth))
            junk = [row for row in truth if row["kind"] != "car"]
            reasons = [{"sha256": row["sha256"]} | reject | {"reason": JUNK[row["kind"]], "time": TIME} for row in junk]
            _add(archive, "reviews.jsonl", _lines(reasons))
        by_file = {row["file"]: row for row in truth}
        journals = {site.name: _lines(_journal(zipfile.Path(part), site, by_file)) for site in SITES}
        with zipfile.ZipFile(part, "a") as archive:
            for name, lines in journals.items():
                _add(archive, f"{name}/journal.jsonl", lines)
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
            describe(row, photo)
            _add(archive, row["file"], photo)
            bar.update()
    with open(folder / "listings.csv", newline="", encoding="utf-8") as file:
        listed = [row | {"file": row["file"].removesuffix(".jpg") + ".webp"} for row in csv.DictReader(file)]
    _add(archive, f"{name}/listings.csv", table(listed))
    return truth


def _journal(archive: zipfile.Path, site: type[SampleSite], truth: dict[str, dict]) -> Iterable[dict]:
    """Yield the lines that a crawl of the site with its file in `scraper/sites/` writes, in the order of the pages."""
    base_url = f"http://127.0.0.1:{site.usual_port}"
    for listing in sorted(read_listings(archive / site.name, site.public, site.private), key=lambda one: one.model):
        for path, file in listing.photos:
            allowed = not path.startswith(site.private)
            photo = truth[f"{site.name}/{file}"] if allowed else {}
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
                "sha256": photo.get("sha256"),
                "bytes": len((archive / site.name / file).read_bytes()) if allowed else None,
                "width": photo.get("width"),
                "height": photo.get("height"),
                "time": TIME,
            }


def _add(archive: zipfile.ZipFile, name: str, content: bytes | str) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980-01-01
    entry.create_system, entry.external_attr = 3, 0o644 << 16  # the same on every system
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(".webp") else zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def _lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_contact_sheet(out: Path) -> Path:
    """Write one JPEG that shows six photos of each of ROWS, from the archive in git."""
    root = zipfile.Path(ARCHIVE)
    truth = list(csv.DictReader((root / "truth.csv").open(encoding="utf-8")))
    width, height = CELL
    sheet = Image.new("RGB", (COLUMNS * width, len(ROWS) * (height + CAPTION)), "white")
    for row, (caption, folder, shown) in enumerate(ROWS):
        top = row * (height + CAPTION)
        ImageDraw.Draw(sheet).text((4, top + CAPTION // 2), caption, fill=(40, 40, 40), font_size=13, anchor="lm")
        listings = set()
        for column in range(COLUMNS):
            wanted = shown[column % len(shown)]
            photo = next(
                one
                for one in truth
                if one["file"].startswith(folder + "/")
                and wanted in (one["kind"], one["model"] if one["kind"] == "car" else "")
                and one["listing"] not in listings
            )
            listings.add(photo["listing"])
            with Image.open(io.BytesIO((root / photo["file"]).read_bytes())) as image:
                fitted = ImageOps.fit(ImageOps.exif_transpose(image), (width - 2, height - 2), Image.Resampling.LANCZOS)
            sheet.paste(fitted, (column * width + 1, top + CAPTION + 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "JPEG", quality=88)
    return out
