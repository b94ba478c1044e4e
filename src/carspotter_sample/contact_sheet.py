"""One picture that shows what the sample world looks like: every model, and the shifted city."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from .listings import CITIES, SHIFTED_CITY, plan_listings, render_listing
from .phone import decode

COLUMNS, CELL, CAPTION = 6, (208, 156), 20  # pixels
ROWS = (  # caption, models in turn, cities
    ("Swift", ("swift",), CITIES),
    ("WagonR", ("wagonr",), CITIES),
    ("other cars", ("alto", "baleno", "dzire", "ertiga", "brezza"), CITIES),
    ("Hyderabad, for the shifted test", ("swift", "wagonr"), (SHIFTED_CITY,)),
)


def write_contact_sheet(out: Path, seed: int = 0) -> Path:
    """Draw each row's first photos of six listings and write them as one JPEG; the same seed gives the same sheet."""
    width, height = CELL
    sheet = Image.new("RGB", (COLUMNS * width, len(ROWS) * (height + CAPTION)), "white")
    for row, (caption, models, cities) in enumerate(ROWS):
        top = row * (height + CAPTION)
        ImageDraw.Draw(sheet).text((4, top + CAPTION // 2), caption, fill=(40, 40, 40), font_size=13, anchor="lm")
        for column, listing in enumerate(plan_listings(COLUMNS, seed + row, models, cities)):
            drawn = render_listing(replace(listing, photos=listing.photos[:1]), seed + row, 2 * width)
            photo, _ = drawn[listing.file(0)]
            fitted = ImageOps.fit(decode(photo), (width - 2, height - 2), Image.Resampling.LANCZOS)
            sheet.paste(fitted, (column * width + 1, top + CAPTION + 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "JPEG", quality=88)
    return out
