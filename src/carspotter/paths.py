"""Where things are: on a laptop, in CI, on Kaggle. The only file that knows Kaggle's mounts."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

WHEEL = "carspotter-wheel"  # the data set on Kaggle with the package's wheel and the recorded results
KAGGLE = Path("/kaggle")  # /kaggle/input/ is read-only; a notebook starts in /kaggle/working/ and may write there


def home() -> Path:
    """Return the folder that holds `data/` and `results/`.

    That is `CARSPOTTER_HOME` when set; else the nearest Carspotter checkout from the working folder upwards; else
    Kaggle's working folder in a Kaggle notebook; else the working folder.
    """
    if chosen := os.environ.get("CARSPOTTER_HOME"):
        return Path(chosen).resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "src" / "carspotter" / "paths.py").is_file():
            return folder
    return mount / "working" if (mount := kaggle()) else here


def kaggle() -> Path | None:
    """Return the folder that holds Kaggle's `input/` and `working/`, or None outside a Kaggle notebook."""
    if "KAGGLE_KERNEL_RUN_TYPE" not in os.environ:
        return None
    here = Path.cwd()
    both = (folder for folder in (here, *here.parents) if (folder / "input").is_dir() and (folder / "working").is_dir())
    return next(both, KAGGLE)


def checkout() -> Path:
    """Return the repository's folder. Raises FileNotFoundError when the package is installed from a wheel."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "notebooks").is_dir():
        raise FileNotFoundError(
            "this needs a checkout of the Carspotter repository: clone it and run `make setup` there"
        )
    return folder


def git(folder: Path, *arguments: str) -> str:
    """Return what git prints in `folder`; "" outside a repository, without git and where git refuses."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def find_archive(data: Path) -> Path | None:
    """Return the archive of the folder `data`: <data>.zip beside it, Kaggle's carspotter-<name>, or None."""
    beside = data.with_name(data.name + ".zip")
    mounted = _mounted("carspotter-" + data.name.replace("_", "-"))
    candidates = [beside, *(place for found in mounted for place in (found / beside.name, found / data.name, found))]
    return next((place for place in candidates if place.exists()), None)


def find_kaggle_dataset(owner: str, slug: str) -> Path | None:
    """Return the folder where Kaggle mounted the data set `owner/slug`, or None."""
    return next(iter(_mounted(slug, owner)), None)


def find_recorded() -> Path | None:
    """Return the folder of recorded results that `kaggle push` attached beside the wheel, or None."""
    return next((found / "results" for found in _mounted(WHEEL) if (found / "results").is_dir()), None)


def _mounted(slug: str, owner: str = "*") -> list[Path]:
    """Return where Kaggle mounted data sets of this name, in any of its three layouts."""
    layouts = (slug, f"datasets/{owner}/{slug}", f"{owner}/{slug}")
    return [found for layout in layouts for found in mount.glob(f"input/{layout}")] if (mount := kaggle()) else []


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Provide a temporary path, with the same suffixes, that takes the place of `path` when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two threads may write the same photo at once.
    part = path.with_name(f".part-{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Place:
    """A path below one of a study's folders, which `parent` names; {name} in it is the study's name."""

    parent: str
    path: str

    def __get__(self, study: "Study | None", owner: type) -> Path:
        if study is None:  # asked of the class, as `help(Study)` does
            return self
        return getattr(study, self.parent) / self.path.format(name=study.name)


@dataclass(frozen=True)
class Study:
    """The files of one study: a set of classes and photos with its split and its runs.

    `data` is shared by all studies without an archive; `results` holds one folder per study and is in git.
    """

    name: str
    data: Path
    results: Path

    @classmethod
    def open(cls, name: str = "my_cars", data: str | os.PathLike | None = None) -> Self:
        """Return the study `name`; results are always in `home()/results`.

        `data` defaults to `data/` in `home()`, or to `data/<name>` for a study whose photos come as `data/<name>.zip`.
        """
        if not name or name != Path(name).name or name.startswith("."):
            raise ValueError(
                f"study name {name!r} cannot be a folder name; use letters, digits and _, as in swift_wagonr"
            )
        own = home() / "data" / name
        folder = Path(data).resolve() if data else own if find_archive(own) else own.parent
        return cls(name, folder, home() / "results")

    raw = Place("data", "raw")
    reviews = Place("data", "reviews.jsonl")
    curation = Place("data", "curation.csv")
    sealed = Place("data", "sealed/{name}.csv")
    images = Place("data", "images")
    folder = Place("results", "{name}")
    splits = Place("folder", "splits.csv")
    splits_checksum = Place("folder", "splits.sha256")  # as `sha256sum` writes it
    runs = Place("folder", "runs")
    runs_table = Place("folder", "runs.csv")
    test_ledger = Place("folder", "test_ledger.jsonl")
    test_scores = Place("folder", "test_scores.jsonl")
