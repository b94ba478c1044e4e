"""HTML pages that need no other file: photos and figures are written into them."""

import base64
import html
import io
from pathlib import Path
from string import Template

from carspotter.paths import atomic_write
from carspotter.photos.images import thumbnail


def write_page(path: Path, title: str, lead: str, body: str) -> Path:
    """Write a page and return its path; `title` and `lead` are plain text, `body` is HTML."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    page = template.substitute(title=html.escape(title), lead=html.escape(lead), body=body)
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def section(title: str, body: str, anchor: str = "") -> str:
    """Return a framed part of a page; `title` is plain text, `body` is HTML, `anchor` what a link may name."""
    name = f' id="{anchor}"' if anchor else ""
    return f"<section{name}><h2>{html.escape(title)}</h2>{body}</section>"


def figure(photo: Path | bytes, caption: str) -> str:
    """Return a small copy of a photo with its caption."""
    return f"<figure>{photo_html(photo, '', 240)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def photo_html(photo: Path | bytes, alt: str, side: int) -> str:
    """Return a small copy of a photo; `alt` says what it shows to those who do not see it."""
    stream = io.BytesIO()
    thumbnail(photo, side).save(stream, "WEBP", quality=80)
    return image_html(stream.getvalue(), "webp", alt)


def image_html(content: bytes, kind: str, alt: str) -> str:
    """Return an image of a kind that browsers know, such as "svg+xml"."""
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'
