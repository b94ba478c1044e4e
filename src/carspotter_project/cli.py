"""The verbs `study` and `kaggle`."""

from pathlib import Path

from carspotter.cli import LAST, add_verb, positive, remember, study_of


def add_verbs(verbs) -> None:
    """Add this package's verbs to the command line's `verbs`."""
    kaggle = verbs.add_parser("kaggle", help="fetch the data set, or push the notebooks")
    errands = kaggle.add_subparsers(required=True, metavar="fetch|push")
    text = "a data set with its train / validation / test -> a study"
    fetching = add_verb(errands, "fetch", kaggle_fetch, text, "swift_wagonr")
    fetching.add_argument("--dataset", default="ajaykgp12/cars-wagonr-swift", metavar="OWNER/NAME", help="%(default)s")
    fetching.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="an unzipped folder, or the zip")
    fetching.add_argument("--minutes", type=positive, default=60, help="give up after (default %(default)s)")
    fetching.set_defaults(study="swift_wagonr")
    fetching.epilog = "Example: carspotter kaggle fetch --from unzipped_folder"
    pushing = errands.add_parser("push", help="the wheel as your private data set, and notebooks that use it")
    pushing.add_argument("--notebook", nargs="+", metavar="NN", help="their numbers (default: all)")
    pushing.add_argument("--internet", action="store_true", help="let them reach the net; off unless asked for")
    pushing.add_argument("--user", metavar="NAME", help="your name on Kaggle (default: that of your credentials)")
    pushing.add_argument("--dry-run", action="store_true", help="write what would be sent, send nothing")
    pushing.add_argument("--out", type=Path, metavar="DIR", help="default: below data/kaggle")
    pushing.set_defaults(verb=kaggle_push)
    pushing.epilog = "Example: carspotter kaggle push --notebook 04 05 --user NAME --dry-run"

    text = "import, curate, split, train and check on a folder of photos"
    study = add_verb(verbs, "study", run_study, text, f"the classes joined by _; without classes {LAST}")
    study.add_argument("photos", nargs="?", type=Path, metavar="FOLDER", help="class folders (default: data/)")
    study.add_argument("--classes", nargs="+", default=[], metavar="CLASS")
    study.add_argument("--epochs", type=positive, help="of baseline_cnn alone (default: its own)")


def kaggle_fetch(options) -> None:
    from carspotter.kaggle import fetch

    study = study_of(options)
    print(fetch(study, options.dataset, options.source, options.minutes))
    remember(study, options)


def kaggle_push(options) -> None:
    from carspotter_project.kaggle_push import push

    folders = push(options.notebook, options.user, options.internet, options.dry_run, options.out)
    print(f"{'Would push' if options.dry_run else 'Pushed'} {len(folders)} notebooks: {folders[0].parent}")


def run_study(options) -> None:
    from carspotter.evidence.report import runs_report, to_markdown
    from carspotter.photos.table import slugify
    from carspotter_project.walkthrough import run_study

    options.classes = [slugify(name) for name in options.classes]
    options.study = options.study or "_".join(options.classes)
    study = study_of(options)
    page = run_study(study, study.data / "reports" / study.name, options.photos, options.classes, options.epochs)
    remember(study, options)
    print(to_markdown(runs_report(study)), end="")
    print(f"Open this page in a browser: {page}")
