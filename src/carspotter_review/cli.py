"""The verb `review`."""

from __future__ import annotations

import contextlib
import getpass
from pathlib import Path

from carspotter.cli import add_verb, port, positive, seed, study_of


def add_verbs(verbs) -> None:
    """Add this package's verbs to the command line's `verbs`."""
    reviewing = add_verb(verbs, "review", review_photos, "a local page on which a person decides -> data/reviews.jsonl")
    reviewing.add_argument("--reviewer", metavar="NAME", help="default: your login name")
    reviewing.add_argument("--port", type=port, default=8766, help="default: %(default)s")
    reviewing.add_argument("--host", default="127.0.0.1", help="another than loopback asks for a token")
    text = "where a proxy serves it, e.g. https://example.org/review/"
    reviewing.add_argument("--public-url", metavar="URL", help=text)
    reviewing.add_argument("--seed", type=seed, default=0, help="another draw of the quiz or the audit")
    reviewing.add_argument("--weights", type=Path, metavar="FILE", help="as for curate: shows the nearest kept photos")
    purposes = reviewing.add_mutually_exclusive_group()
    purposes.add_argument("--quiz", type=positive, metavar="N", help="name the model in N validation photos")
    purposes.add_argument("--audit", type=positive, metavar="N", help="judge N kept photos: how much junk is left?")


def review_photos(options) -> None:
    from carspotter.curation.appearance import describe_photos
    from carspotter.evidence.intervals import accuracy_interval
    from carspotter.photos.table import read_curation, read_photos
    from carspotter_review import session as review
    from carspotter_review.server import serve_reviews

    study, reviewer = study_of(options), options.reviewer or getpass.getuser()
    settings = {"port": options.port, "host": options.host, "seed": options.seed, "public_url": options.public_url}
    if not options.quiz:
        read_curation(study)  # before minutes of describing: without it there is nothing to review
        settings["features"] = describe_photos(study.data, read_photos(study.data), options.weights)
    with serve_reviews(study, reviewer, quiz=options.quiz, audit=options.audit, **settings) as server:
        print(f"Review on {server.url} (Ctrl-C stops; every decision is on disk)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.wait()
    if options.quiz:
        answers = review.read_quiz(study, reviewer)
        if len(answers):
            interval = accuracy_interval(answers["correct"], answers["group"])
            print(f"{reviewer} named {interval.photos} validation photos: accuracy {interval}")
    if options.audit:
        print(review.read_audit(study, options.audit, options.seed))
