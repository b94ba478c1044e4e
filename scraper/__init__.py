"""Collects the photos of car listings, politely and so that every URL's outcome is on record.

    python -m scraper SITE --out data/raw

`browser` opens pages, `loading` follows their paging and `settling` says when they may be taken; `pages`, `pictures`
and `addresses` read them; `photos` sees to it that each photo has its outcome, `download` fetches it under the rules of
`politeness`; `journal` remembers; `crawl` joins them and `closing` says what may be missing. A new site is a new file
in `sites/`, no code. The README beside this file says more.
"""

__version__ = "0.1.0"
