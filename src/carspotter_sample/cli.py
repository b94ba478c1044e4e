"""The verb `sample`: draw photos, serve the sample sites, draw the contact sheet."""

from __future__ import annotations

import contextlib
from pathlib import Path

from carspotter.cli import positive


def add_verbs(verbs) -> None:
    """Add this package's verbs to the command line's `verbs`."""
    sample = verbs.add_parser("sample", help="rendered listing photos and the sample site")
    parts = sample.add_subparsers(required=True, metavar="photos|serve|sheet")
    photos = parts.add_parser("photos", help="write class folders of rendered photos, with truth.csv beside them")
    serve = parts.add_parser("serve", help="serve the sample used-car site on loopback")
    sheet = parts.add_parser("sheet", help="write the contact sheet of the README")
    sheet.add_argument("--out", type=Path, default=Path("results/sample/figures/contact_sheet.jpg"), metavar="FILE")
    sheet.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    sheet.set_defaults(verb=sample_sheet)
    for part, verb in ((photos, sample_photos), (serve, sample_serve)):
        part.add_argument("--listings", type=positive, default=120, help="cars on sale (default %(default)s)")
        part.add_argument("--seed", type=int, default=0, help="another seed, another town (default %(default)s)")
        part.set_defaults(verb=verb)
    photos.add_argument("--out", type=Path, required=True, metavar="DIR")
    photos.add_argument("--longest-side", type=positive, default=1600, metavar="PIXELS", help="smaller is quicker")
    serve.add_argument("--site", choices=("sample", "hyderabad"), default="sample", help="default: %(default)s")
    serve.add_argument(
        "--out", type=Path, metavar="DIR", help="its photos; drawn if missing (default demo/site, demo/site-hyderabad)"
    )
    serve.add_argument("--port", type=int, help="0 takes a free one (default 8000, hyderabad 8001)")


def sample_photos(options) -> int:
    from carspotter_sample.listings import write_photos

    write_photos(options.out, listings=options.listings, seed=options.seed, longest_side=options.longest_side)
    print(f"Wrote {options.listings} listings to {options.out}")
    return 0


def sample_sheet(options) -> int:
    from carspotter_sample.contact_sheet import write_contact_sheet

    print(f"Wrote {write_contact_sheet(options.out, options.seed)}")
    return 0


def sample_serve(options) -> int:
    from carspotter_sample.listings import write_photos
    from carspotter_sample.second_site import SecondSite
    from carspotter_sample.site import SampleSite

    # the second site's robots.txt asks for a pause, as real ones do
    site_of, port, delay = (SampleSite, 8000, 0.0) if options.site == "sample" else (SecondSite, 8001, 0.5)
    folder = options.out or Path("demo/site" if options.site == "sample" else "demo/site-hyderabad")
    if not folder.exists():
        write_photos(folder, listings=options.listings, seed=options.seed, cities=site_of.cities)
    site = site_of(folder, port=port if options.port is None else options.port, crawl_delay=delay)
    print(f"Serving the {options.site} site on {site.base_url} (Ctrl-C stops it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        site.serve_forever()
    return 0
