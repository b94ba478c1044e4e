"""One picture that shows what the sample world looks like: every model, the second site, and junk."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from .site import ARCHIVE, OTHER_MODELS

COLUMNS, CELL, CAPTION = 6, (208, 156), 20  # pixels
JUNK = ("dashboard", "wheel", "document", "empty_street", "engine", "too_blurred")
ROWS = (  # caption, the folder in the archive, what is shown: models or kinds of junk, in turn
    ("Swift", "sample", ("swift",)),
    ("WagonR", "sample", ("wagonr",)),
    ("the second site", "hyderabad", ("swift", "wagonr")),
    ("other cars", "others", OTHER_MODELS),
    ("junk photos: about a tenth of all", "sample", JUNK),
)


def write_contact_sheet(out: Path, archive: Path = ARCHIVE) -> Path:
    """Write one photo of six listings for each row as one JPEG, from the archive that `sample archive` writes."""
    root = zipfile.Path(archive)
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
