"""The verbs `check`, `export` and `serve`."""

from __future__ import annotations

import json
from pathlib import Path

from carspotter.cli import add_verb, positive, study_of


def add_verbs(verbs) -> None:
    """Add this package's verbs to the command line's `verbs`."""
    checking = add_verb(verbs, "check", check_photos, "name the model on photos, or check what a listing claims")
    checking.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="files, or folders of them")
    checking.add_argument("--claim", help="the class that the listing claims")
    checking.add_argument("--run", help="run id (default: the study's best on validation)")
    checking.add_argument("--model", type=Path, metavar="BUNDLE", help="an exported model instead of a run")
    checking.add_argument("--json", action="store_true", help="one JSON object per line")

    exporting = add_verb(
        verbs, "export", export_model, "write a run as a bundle for production, if it answers the same"
    )
    exporting.add_argument("run", metavar="RUN")
    exporting.add_argument("--to", default="onnx", choices=("onnx", "keras", "savedmodel", "litert"))
    exporting.add_argument("--out", type=Path, metavar="DIR", help="default: data/bundles/RUN-FORMAT")
    exporting.add_argument("--risk", type=float, default=0.01, help="share of wrong answers among the accepted ones")
    exporting.add_argument("--int8", action="store_true", help="smaller and quicker, behind a gate of its own")

    serving = verbs.add_parser("serve", help="the photo check over HTTP, with a page to try it")
    serving.add_argument("bundle", type=Path, metavar="BUNDLE", help="written by `carspotter export`")
    serving.add_argument("--host", default="127.0.0.1")
    serving.add_argument("--port", type=int, default=8080)
    serving.add_argument("--threads", type=positive, help="default: as many as cores")
    serving.set_defaults(verb=serve_check)


def check_photos(options) -> int:
    from carspotter.progress import progress_bar
    from carspotter_check.photo_check import PhotoCheck, photos_in

    files = list(photos_in(options.photos))
    check = PhotoCheck.load(options.model or study_of(options), options.run)
    with progress_bar(len(files), "check", "photos", shown=len(files) > 20) as progress:
        for file in files:
            answer = check.check(file, options.claim)
            print(json.dumps(answer.as_dict()) if options.json else answer, flush=True)
            progress.update()
    return 0


def export_model(options) -> int:
    from carspotter_check.export import export_run

    bundle = export_run(
        study_of(options), options.run, options.to, out=options.out, risk=options.risk, int8=options.int8
    )
    print(f"Exported {options.run} to {bundle}; it gives the same answers as the run")
    return 0


def serve_check(options) -> int:
    from carspotter_check.server import serve

    serve(options.bundle, host=options.host, port=options.port, threads=options.threads)
    return 0
