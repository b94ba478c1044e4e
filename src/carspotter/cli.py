"""`python -m carspotter VERB`: one verb per stage, each a thin call into the package."""

import argparse
import contextlib
import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

from carspotter import __version__
from carspotter.paths import Study, atomic_write, home

# Packages beside this one that bring verbs of their own; the sample site is not in the wheel.
NEIGHBOURS = ("carspotter_project", "carspotter_review", "carspotter_check", "carspotter_sample")
LAST_STUDY = ".study"  # in the data folder: the name of the study that was split, fetched or made last
LAST = "that of the last split, kaggle fetch or study, else my_cars"

# The verbs as `carspotter --help` shows them, each with an example.
GROUPS = {
    "Start": {"demo": "", "doctor": "", "study": "my_photos --classes swift wagonr", "sample": "serve"},
    "Data": {
        "import": "my_photos --classes swift wagonr",
        "audit": "my_photos --weights mobilenet_v2.weights.h5",
        "curate": "--weights mobilenet_v2.weights.h5",
        "review": "--reviewer Asha",
        "forget": 64 * "0",
        "split": "--classes swift wagonr",
        "kaggle": "fetch",
    },
    "Train": {"train": "fast_recipe --framework torch", "sweep": "series.toml --processes 2", "runs": ""},
    "Decide": {"report": "", "unseal": 'chosen --reason "the series is finished"'},
    "Deploy": {
        "check": "photo.jpg --claim swift",
        "export": "fast_recipe-torch-s0-1a2b3c4d",
        "serve": "data/bundles/fast_recipe-torch-s0-1a2b3c4d-onnx",
    },
}


class Parser(argparse.ArgumentParser):
    """An argument parser that proposes what was meant."""

    def _check_value(self, action: argparse.Action, value) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.5)
        proposal = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(names)}"
        raise argparse.ArgumentError(action, f"{value!r} is unknown; {proposal}")

    def parse_known_args(self, args=None, namespace=None):
        known, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            if near := difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, n=1):
                self.error(f"{word} is unknown; did you mean {near[0]}?")
        return known, unknown


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return the exit code: 0 done, 1 the verb's own "no", 2 bad input, 130 interrupted, 141 unread."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        importlib.import_module("argcomplete").autocomplete(parser)
    options = parser.parse_args(arguments)
    try:
        code = options.verb(options) or 0
        sys.stdout.flush()  # a reader that is gone shows here, and not in a traceback at the very end
        return code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what shells say of a program that SIGPIPE ended
    except KeyboardInterrupt:
        print("\nInterrupted. What is finished is kept; run the same command again to go on.", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if os.environ.get("CARSPOTTER_DEBUG"):
            raise
        print(f"carspotter: {error}", file=sys.stderr)
        return 2


def import_photos(options) -> None:
    from carspotter.photos.importing import import_folder

    if not (options.folder or options.rejects or options.others):
        raise ValueError("name a folder of photos, --rejects FOLDER or --others FOLDER")
    report = import_folder(
        study_of(options).data,
        options.folder,
        classes=options.classes,
        rejects=options.rejects,
        others=options.others,
        listing_from=options.listing_from,
        ignore_split=options.ignore_split,
        replace_all=options.replace,
    )
    print(report)


def curate_photos(options) -> None:
    from carspotter.curation.curate import curate_study, summary

    print(summary(curate_study(study_of(options), options.weights, options.train)))


def audit_folder(options) -> None:
    from carspotter.curation.audit import audit_folder

    name = options.folder.resolve().name
    out = options.out or home() / "data" / "reports" / f"audit-{name}"
    print(audit_folder(options.folder, out, options.weights, options.listing_from))


def forget_photo(options) -> None:
    from carspotter.photos.table import forget

    deleted = forget(study_of(options).data, options.sha256)
    print(*(f"deleted {file}" for file in deleted), sep="\n")
    print(f"Forgot {options.sha256}: its hash stays, so that it is never fetched again")
    print("What was never in this data folder may still hold it: the folder or archive it came from, copies of yours")


def split_photos(options) -> int | None:
    from carspotter.photos import splitting, verification

    study = study_of(options)
    if options.verify:
        report = verification.verify_split(study)
        print(report)
        return 0 if report.ok else 1
    print(splitting.split_study(study, classes=options.classes, shifted_sites=options.shifted))
    remember(study, options)


def train_model(options) -> None:
    from dataclasses import replace

    from carspotter.models import experiments, runs

    names = ("epochs", "image_size", "dtype", "weights")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    experiment = experiments.SERIES[options.experiment]
    experiment = replace(experiments.quick(experiment) if options.quick else experiment, **changes)
    run = runs.load_or_train(study_of(options), experiment, options.framework, options.seed)
    print(run.summary().to_string())


def report_runs(options) -> None:
    from carspotter.evidence.report import write_report

    print(write_report(study_of(options)), end="")


def unseal_test(options) -> None:
    from carspotter.evidence.sealed_score import unseal

    for line in unseal(study_of(options), options.run, options.reason, options.again):
        print(line, flush=True)


def sweep_runs(options) -> int:
    from carspotter.evidence.report import to_markdown
    from carspotter.models.sweep import read_sweep, run_sweep

    table = run_sweep(study_of(options), read_sweep(options.sweep), options.processes, options.on, options.cpus)
    print(to_markdown(table), end="")
    failed = table["error"] != ""
    trained, hours = (~failed & (table["seconds"] > 0)).sum(), table["seconds"].sum() / 3600
    print(f"cost: {hours:.2f} cell-hours; {trained} cells trained now, {failed.sum()} failed")
    return int(failed.any())


def examine_machine(options) -> None:
    from carspotter.doctor import examine

    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{'ok' if finding.works else '--'}  {finding.what:<{width}}  {finding.says}")


def list_runs(options) -> None:
    from carspotter.models.store import how_to_train, read_runs

    study = study_of(options)
    runs = read_runs(study)
    if runs.empty:
        print(f"{study.runs_table}: no runs yet; {how_to_train(study)}")
        return
    columns = ["run", "image_size", "epochs", "mean_last_five_validation_accuracy", "seconds", "finished_time"]
    table = runs.reindex(columns=columns).rename(columns={columns[3]: "validation", "finished_time": "finished"})
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def study_of(options) -> Study:
    """Return the study that --study names, else the one remembered in this data folder, else my_cars."""
    last = _last_study(options)
    return Study.open(options.study or (last.read_text(encoding="utf-8") if last.exists() else "my_cars"), options.data)


def remember(study: Study, options) -> None:
    """Let the verbs that follow take this study where none is named."""
    with atomic_write(_last_study(options)) as part:
        part.write_text(study.name, encoding="utf-8")


def _last_study(options) -> Path:
    # Not in the study's own data: one with an archive has a folder for itself.
    return (options.data or home() / "data") / LAST_STUDY


def _parser() -> argparse.ArgumentParser:
    from carspotter.models.experiments import SERIES, TRAINING_DTYPES
    from carspotter.models.store import FRAMEWORKS
    from carspotter.photos.folders import LISTING_FROM

    parser = Parser(
        prog="carspotter",
        usage="carspotter VERB …",
        description="Does this photo show the car that the ad claims?",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(prog="carspotter", required=True, metavar="VERB", help=argparse.SUPPRESS)

    importing = add_verb(verbs, "import", import_photos, "take in a folder of photos: one sub-folder per class")
    importing.add_argument("folder", type=Path, nargs="?", help="holds one sub-folder per class")
    importing.add_argument("--classes", nargs="+", metavar="CLASS", help="only these sub-folders")
    importing.add_argument("--rejects", type=Path, metavar="FOLDER", help="unusable photos: interiors, papers, no car")
    importing.add_argument("--others", type=Path, metavar="FOLDER", help="photos of other models, none of the classes")
    importing.add_argument(
        "--listing-from",
        choices=LISTING_FROM,
        default="auto",
        help="what says which photos show one car, where listings.csv does not: the sub-folder of a class, a name "
        "CAR__1.jpg, both in this order (auto, the default) or nothing",
    )
    importing.add_argument("--ignore-split", action="store_true", help="pool the photos of FOLDER/{train,val,test}")
    importing.add_argument("--replace", action="store_true", help="take out photos that are no longer in FOLDER")

    curating = add_verb(verbs, "curate", curate_photos, "find duplicates and bad photos -> data/curation.csv")
    curating.add_argument(
        "--weights", type=Path, metavar="FILE", help="MobileNetV2's, without the top: ranks far better"
    )
    curating.add_argument(
        "--train",
        choices=list(FRAMEWORKS),
        help="also train models on the photos themselves and ask each about those it has not seen: minutes; with "
        "--weights the backbone's last blocks (keras only): several minutes a thousand photos",
    )

    auditing = verbs.add_parser("audit", help="what is wrong with any folder of photos; needs no study or split")
    auditing.add_argument("folder", type=Path, help="photos in <class>/, in {train,val,test}/<class>/, or in no class")
    auditing.add_argument("--weights", type=Path, metavar="FILE", help="MobileNetV2's: doubts labels far better")
    auditing.add_argument("--listing-from", choices=LISTING_FROM, default="auto", help="as in import (%(default)s)")
    auditing.add_argument("--out", type=Path, metavar="DIR", help="default: data/reports/audit-FOLDER")
    auditing.set_defaults(verb=audit_folder)

    forgetting = add_verb(verbs, "forget", forget_photo, "delete a photo on request; its hash stays as a tombstone")
    forgetting.add_argument("sha256")

    splitting = add_verb(verbs, "split", split_photos, "train / validation / sealed test -> results/STUDY/splits.csv")
    splitting.add_argument("--classes", nargs="+", metavar="CLASS", help="the study's classes (default: all)")
    splitting.add_argument("--shifted", nargs="+", default=(), metavar="SITE", help="sites of the shifted test set")
    splitting.add_argument("--verify", action="store_true", help="prove that no group or near-duplicate crosses")

    training = add_verb(verbs, "train", train_model, "train and record one run (or find it recorded)")
    training.add_argument("experiment", choices=list(SERIES), metavar="EXPERIMENT", help=", ".join(SERIES))
    training.add_argument("--framework", default="keras", choices=list(FRAMEWORKS))
    training.add_argument("--seed", type=seed, default=0)
    training.add_argument("--quick", action="store_true", help="48 photos, 64 px, 2 epochs: does it run?")
    training.add_argument("--epochs", type=positive, help="default: the experiment's own")
    training.add_argument("--image-size", type=positive, metavar="PIXELS", help="default: the experiment's own")
    training.add_argument("--dtype", choices=TRAINING_DTYPES, help="bfloat16: quick where `doctor` finds units for it")
    training.add_argument(
        "--weights", metavar="FILE", help="of a backbone: imagenet (the default: downloads), a file or folder, or none"
    )

    sweeping = add_verb(verbs, "sweep", sweep_runs, "train many runs: experiments, frameworks, image sizes, seeds")
    example = """one a line: experiments = ["dropout"], and where wanted frameworks = ["torch"], image_sizes = [64],
    seeds = [0, 1, 2], epochs = 100, dtype = "bfloat16", weights = "FILE", quick = true"""
    sweeping.add_argument("sweep", type=Path, metavar="SWEEP.toml", help=example)
    sweeping.add_argument("--processes", type=positive, default=1, help="runs at a time (default %(default)s)")
    sweeping.add_argument("--on", default="local", metavar="ENGINE", help="local, ray or ray://HOST:PORT (%(default)s)")
    sweeping.add_argument("--cpus", type=positive, default=1, help="for each run on Ray (default %(default)s)")

    add_verb(verbs, "report", report_runs, "tables of recorded runs and verdicts -> results/STUDY/report.md")

    unsealing = add_verb(verbs, "unseal", unseal_test, "score a run on the sealed test set, which is recorded")
    unsealing.add_argument("run", metavar="RUN", help="a run's id, or `chosen`: by the one-standard-error rule")
    unsealing.add_argument("--reason", required=True, help="why the test set is opened; goes into the ledger")
    unsealing.add_argument("--again", metavar="WHY", help="why another model than the first is evaluated")

    doctor = verbs.add_parser("doctor", help="what works on this machine, and what to install")
    doctor.set_defaults(verb=examine_machine)

    add_verb(verbs, "runs", list_runs, "list the recorded runs of a study")

    for neighbour in NEIGHBOURS:
        if importlib.util.find_spec(neighbour):
            importlib.import_module(f"{neighbour}.cli").add_verbs(verbs)
    texts = {action.dest: action.help for action in verbs._choices_actions}
    lines = []
    for group, examples in GROUPS.items():
        lines += ["", f"{group}:"]
        for name, example in examples.items():
            if name in verbs.choices:
                lines.append(f"  {name:<9} {texts[name]}")
                verbs.choices[name].description = texts[name]
                verbs.choices[name].epilog = f"Example: carspotter {name} {example}".strip()
    completion = 'Completion in bash and zsh: pip install argcomplete; eval "$(register-python-argcomplete carspotter)"'
    parser.epilog = "\n".join([*lines[1:], "", "`carspotter VERB --help` says more about each.", completion])
    return parser


def add_verb(verbs, name: str, verb, text: str, unless: str = LAST) -> argparse.ArgumentParser:
    """Add a verb that works on a study: `unless` says which, where none is named."""
    parser = verbs.add_parser(name, help=text, description=text)
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos and tables (default: data)")
    parser.add_argument("--study", metavar="NAME", help=f"default: {unless}")
    parser.set_defaults(verb=verb)
    return parser


def _whole(lowest: int, highest: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if lowest <= int(text) <= highest:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {lowest} to {highest}")

    return read


positive, port, seed = _whole(1, 2**31 - 1), _whole(0, 65_535), _whole(0, 2**32 - 1)
