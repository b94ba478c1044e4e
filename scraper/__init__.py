"""Collects the photos of car listings, politely and so that every URL's fate is on record.

    python -m scraper SITE --out data/raw

`browser` opens pages, `pages` reads them, `download` fetches the photos, `journal` remembers; `crawl` joins the four.
A new site is a new file in `sites/`, no code. The folder it writes is described in the README beside this file.
"""

__version__ = "0.1.0"
