"""The verbs `sample` (draw, pack and serve the rendered photos) and `demo`."""

import contextlib
from pathlib import Path

from carspotter.cli import port, positive, seed


def add_verbs(verbs) -> None:
    """Add this package's verbs to the command line's `verbs`."""
    sample = verbs.add_parser("sample", help="rendered listing photos and the two sample sites")
    parts = sample.add_subparsers(required=True, metavar="serve|photos|archive|sheet")

    serve = parts.add_parser("serve", help="serve a sample used-car site on loopback")
    serve.add_argument("--site", choices=("sample", "hyderabad"), default="sample", help="default: %(default)s")
    serve.add_argument("--photos", type=Path, metavar="DIR", help="written by `sample photos` (default: the archive)")
    serve.add_argument("--listings", type=positive, help="cars on sale (default: all)")
    serve.add_argument("--port", type=port, help="0 takes a free one (default 8000, hyderabad 8001)")
    serve.set_defaults(verb=sample_serve)

    photos = parts.add_parser("photos", help="draw photos into class folders, with truth.csv beside them")
    photos.add_argument("--listings", type=positive, default=120, help="cars on sale (default %(default)s)")
    photos.add_argument("--seed", type=seed, default=0, help="another seed, another town (default %(default)s)")
    photos.add_argument("--out", type=Path, required=True, metavar="DIR")
    photos.add_argument("--longest-side", type=positive, default=1600, metavar="PIXELS", help="smaller is quicker")
    photos.set_defaults(verb=sample_photos)

    archive = parts.add_parser("archive", help="draw the study's photos and pack them: half an hour")
    archive.add_argument("--drawn", type=Path, required=True, metavar="DIR", help="photos as drawn; kept if there")
    archive.add_argument("--out", type=Path, default=Path("data/sample_2.zip"), metavar="FILE", help="%(default)s")
    archive.set_defaults(verb=sample_archive)

    sheet = parts.add_parser("sheet", help="write the contact sheet of the README from the archive")
    sheet.add_argument("--out", type=Path, default=Path("results/sample_2/figures/contact_sheet.jpg"), metavar="FILE")
    sheet.set_defaults(verb=sample_sheet)

    demo = verbs.add_parser("demo", help="the whole way on the sample site, in minutes, into demo/")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--listings", type=positive, default=300, help="cars on sale (default %(default)s)")
    demo.add_argument("--epochs", type=positive, help="of the training")
    demo.set_defaults(verb=demo_verb)


def sample_serve(options) -> None:
    from carspotter_sample.second_site import SecondSite
    from carspotter_sample.site import SampleSite

    # the second site's robots.txt asks for a pause, as real ones do
    site_of, delay = (SampleSite, 0.0) if options.site == "sample" else (SecondSite, 0.5)
    number = site_of.usual_port if options.port is None else options.port
    site = site_of(options.photos, listings=options.listings, port=number, crawl_delay=delay)
    print(f"Serving the {options.site} site on {site.base_url} (Ctrl-C stops it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        site.serve_forever()


def sample_photos(options) -> None:
    from carspotter_sample.listings import write_photos

    write_photos(options.out, listings=options.listings, seed=options.seed, longest_side=options.longest_side)
    print(f"Wrote {options.listings} listings to {options.out}")


def sample_archive(options) -> None:
    from carspotter_sample.archive import write_archive

    print(f"Wrote {write_archive(options.out, options.drawn)}")


def sample_sheet(options) -> None:
    from carspotter_sample.archive import write_contact_sheet

    print(f"Wrote {write_contact_sheet(options.out)}")


def demo_verb(options) -> None:
    from carspotter_sample.demo import run_demo

    page = run_demo(options.out, options.listings, **({"epochs": options.epochs} if options.epochs else {}))
    print(f"Open this page in a browser: {page}")
