"""The verbs `check`, `export` and `serve`."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import asdict
from pathlib import Path

from carspotter.cli import add_verb, port, positive, study_of

# The model that comes with Carspotter: trained on the rendered photos of the study sample_2.
SHIPPED = Path(__file__).parent / "sample_bundle"


def add_verbs(verbs) -> None:
    """Add this package's verbs to the command line's `verbs`."""
    checking = add_verb(verbs, "check", check_photos, "name the model on photos, or check what a listing claims")
    checking.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="files, or folders of them")
    checking.add_argument(
        "--listing", type=Path, metavar="FOLDER|CSV",
        help="one verdict per car: a folder with its photos, a folder of such folders, or a table with the columns "
        "listing, photo and, if there is one, claim",
    )  # fmt: skip
    checking.add_argument("--claim", help="the class that the listing claims")
    text = "run id (default: the study's best on validation, else the model that comes with Carspotter)"
    model = checking.add_mutually_exclusive_group()
    model.add_argument("--run", help=text)
    model.add_argument("--model", type=Path, metavar="BUNDLE", help="an exported model instead of a run")
    form = checking.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object per line")
    form.add_argument("--csv", action="store_true", help="a table")

    text = "write a run as a bundle for production, if it answers the same"
    exporting = add_verb(verbs, "export", export_model, text)
    exporting.add_argument("run", metavar="RUN")
    exporting.add_argument("--to", default="onnx", choices=("onnx", "keras", "savedmodel", "litert"))
    exporting.add_argument("--out", type=Path, metavar="DIR", help="default: data/bundles/RUN-FORMAT")
    exporting.add_argument("--risk", type=float, default=0.01, help="share of wrong answers among the accepted ones")

    serving = verbs.add_parser("serve", help="the photo check over HTTP, with a page to try it")
    serving.add_argument(
        "bundle", nargs="?", default=SHIPPED, type=Path, metavar="BUNDLE",
        help="written by `carspotter export` (default: the model that comes with Carspotter)",
    )  # fmt: skip
    serving.add_argument("--host", default="127.0.0.1")
    serving.add_argument("--port", type=port, default=8080, help="0: a free one (default: 8080)")
    serving.add_argument("--threads", type=positive, help="default: as many as cores may be used")
    serving.add_argument("--root-path", default="", metavar="/PREFIX", help="where a proxy shows the server")
    serving.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL",
        help="a site whose pages may ask (CORS); repeatable",
    )  # fmt: skip
    serving.set_defaults(verb=serve_check)


def check_photos(options) -> None:
    from carspotter.progress import progress_bar
    from carspotter_check.bundle import sha256_of
    from carspotter_check.listing import combine, mark_copies, read_listings
    from carspotter_check.photo_check import photos_in, printable

    if bool(options.photos) == bool(options.listing):
        raise ValueError("name photos, or one --listing")
    asked = [(None, [photo], options.claim) for photo in photos_in(options.photos)]
    if options.listing:
        asked = [(name, photos, claim or options.claim) for name, photos, claim in read_listings(options.listing)]
    if not asked:
        raise FileNotFoundError(f"no photos in {', '.join(map(str, options.photos or [options.listing]))}")
    check = _load(options)
    for listing, _, claim in asked:
        try:
            check.know(claim)
        except ValueError as error:
            where = "--claim" if listing is None else f"{options.listing}: listing {printable(listing)}"
            raise ValueError(f"{where}: {error}") from None
    promised = check.rejection
    if promised.certified is None or promised.certified > promised.risk:
        print(f"how far to trust {check.run_id}: {promised.reason}", file=sys.stderr)
    rows = csv.writer(sys.stdout, lineterminator="\n")
    total = sum(len(photos) for _, photos, _ in asked)
    with progress_bar(total, "check", "photos", shown=total > 20) as progress:
        for number, (listing, photos, claim) in enumerate(asked):
            answers = [check.check(photo, claim) for photo in photos]
            progress.update(len(photos))
            answer, name = answers[0], {}
            if listing is not None:
                usable = [one.verdict != "unusable" for one in answers]
                contents = [
                    sha256_of(photo) if good else str(photo) for photo, good in zip(photos, usable, strict=True)
                ]
                answer = combine(check, mark_copies(check, answers, contents), claim)
                name = {"listing": printable(listing)}
            if options.json:
                print(json.dumps(name | asdict(answer)), flush=True)
            elif options.csv:
                row = name | _row(asdict(answer), check.class_names)
                rows.writerows([row, row.values()] if number == 0 else [row.values()])
            else:
                print(*name.values(), answer, sep=": ", flush=True)


def _row(facts: dict, class_names: list[str]) -> dict:
    """Return the cells of an answer's row in a table: of one photo a column per class, of a listing none."""
    if facts.pop("answers", None) is None:
        shares = facts.pop("probabilities")
        facts |= {f"p_{label}": shares.get(label) for label in class_names}
    return {key: "; ".join(value) if isinstance(value, list) else value for key, value in facts.items()}


def _load(options):
    """Load the model asked for, or, where the study has none on this machine, the one that comes with Carspotter."""
    from carspotter_check.photo_check import PhotoCheck

    study = study_of(options)
    try:
        return PhotoCheck.load(options.model or study, options.run)
    except FileNotFoundError:
        if options.model or options.run or not SHIPPED.is_dir():
            raise
        check = PhotoCheck.load(SHIPPED)
        print(
            f"no trained run of {study.name} on this machine: the model that comes with Carspotter answers, which "
            f"learned from rendered photos of {' and '.join(check.class_names)}",
            file=sys.stderr,
        )
        return check


def export_model(options) -> None:
    from carspotter_check.bundle import read_manifest
    from carspotter_check.export import export_run

    bundle = export_run(study_of(options), options.run, options.to, out=options.out, risk=options.risk)
    print(f"Exported {options.run} to {bundle}; it gives the same answers as the run")
    print(f"How far to trust its answers ({bundle / 'model_card.md'}): {read_manifest(bundle)['rejection']['reason']}")


def serve_check(options) -> None:
    try:
        from carspotter_check.server import serve
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; install it with: pip install 'carspotter[serve]'") from error
    serve(
        options.bundle, host=options.host, port=options.port, threads=options.threads, root_path=options.root_path,
        allow_origins=options.allow_origin,
    )  # fmt: skip
