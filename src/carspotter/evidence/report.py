"""The tables of a study's recorded runs, as `carspotter report` prints them and results/README.md shows them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from carspotter.evidence.comparison import Comparison, comparison_table
from carspotter.evidence.results import compare_runs, results_of, training_accuracy
from carspotter.evidence.selection import full_runs, recorded_recipes
from carspotter.models.experiments import SERIES
from carspotter.models.store import Run, load_run, read_runs
from carspotter.paths import Study

# What the series asks, fixed beforehand: a table of verdicts always shares its error among all its questions.
STEPS = (
    ("baseline_cnn", "augmentation"),
    ("augmentation", "dropout"),
    ("dropout", "batch_norm"),
    ("batch_norm", "batch_norm_before_relu"),
)
RECIPES = (
    ("vgg16_features", "vgg16_fine_tune"),
    ("mobilenet_features", "mobilenet_fine_tune"),
    ("baseline_cnn", "fast_recipe"),
    ("fast_recipe", "mobilenet_features"),
    ("fast_recipe_plain", "fast_recipe"),
)


@dataclass(frozen=True)
class Step:
    """One step of the series on one study: the recorded seeds before and after it, and their comparison."""

    before: list[Run]
    after: list[Run]
    comparison: Comparison

    @property
    def histories(self) -> dict[str, pd.DataFrame]:
        """The history of one seed of each side, for `plots.training_curves`."""
        return {runs[0].row["experiment"]: runs[0].history for runs in (self.before, self.after)}

    @property
    def setting(self) -> str:
        """Photos, pixels and epochs, which both sides share."""
        row = self.after[0].row
        return f"{row['train_photos']:,} training photos, {row['image_size']} px, {row['epochs']} epochs"

    def __str__(self) -> str:
        points = self.comparison.difference
        return (
            f"{self.comparison.name_b} changes the validation accuracy of {self.comparison.name_a} by "
            f"{100 * points.estimate:+.1f} points [{100 * points.low:+.1f}, {100 * points.high:+.1f}]: "
            f"{self.comparison.verdict}\n    ({self.setting}, seeds: {points.seeds}, mean of the last five epochs, "
            f"{100 * points.level:.4g} % interval, on this split)"
        )


def recorded_steps(studies: Mapping[str, Study], before: str, after: str) -> dict[str, Step]:
    """Return what a step of the series changed in each study; a study without runs of both sides is left out.

    Both sides have the same framework, pixels, epochs and dtype, chosen as for `verdicts_report`. The interval is at
    1 − .05/m for the m steps of the series.
    """
    steps = {}
    for name, study in studies.items():
        pair = _pair(recorded_recipes(study), before, after) if len(read_runs(study)) else None
        if pair and _are_alike(*pair):
            (_, earlier), (_, later) = pair
            steps[name] = Step(earlier, later, compare_runs(study, earlier, later, comparisons=len(STEPS)))
    return steps


def runs_report(study: Study) -> pd.DataFrame:
    """Return one row per recorded run: accuracies with interval, gap, best and last epoch, minutes, device, commit.

    Runs on a part of the training photos, as for learning curves, are left out. Training accuracy and gap belong to the
    last epochs, as the figure compared does. Raises FileNotFoundError when nothing has been recorded.
    """
    recorded = read_runs(study)
    recorded = recorded[recorded["train_on"] == ""]
    if recorded.empty:
        raise FileNotFoundError(f"{study.runs_table} holds no runs; train one: python -m carspotter train baseline_cnn")
    rows = []
    for row in recorded.sort_values(["experiment", "framework", "seed"], kind="stable").itertuples():
        run = load_run(study, row.run)
        trained, found = training_accuracy(run), results_of(study, [run]).interval()
        rows.append(
            {
                "experiment": row.experiment,
                "framework": row.framework,
                "seed": row.seed,
                "photos (train / validation)": f"{row.train_photos} / {row.validation_photos}",
                "training": f"{trained:.3f}",
                "validation, mean of the last five [95 %]": str(found),
                "gap": f"{trained - found.estimate:+.3f}",
                "best epoch (optimistic)": f"{results_of(study, [run], 'best').correct.mean():.3f}",
                "best / last epoch": f"{row.best_epoch} / {int(run.history['epoch'].iloc[-1])}",
                "processor minutes": f"{run.minutes:.1f}",
                "device": row.device,
                "commit": row.commit,
                "quick": "quick" if row.quick else "",
            }
        )
    table = pd.DataFrame(rows)
    return table if (table["quick"] != "").any() else table.drop(columns="quick")


def recipes_report(study: Study) -> pd.DataFrame:
    """Return one row per recipe of `recorded_recipes`, all its seeds together; none where only quick runs are recorded.

    Validation accuracy is the mean of the last five epochs, with an interval over seeds and groups of photos; the best
    epochs stand beside it. ± is the standard deviation between seeds; one seed has none. Rows are in the order of the
    series, those of an experiment from large images and long runs to small and short ones.
    """
    places = {name: place for place, name in enumerate(SERIES)}

    def place_of(recipe: tuple) -> tuple:
        experiment, framework, epochs, image_size, *_ = recipe
        return places.get(experiment, len(places)), experiment, -image_size, -epochs, framework

    found = []
    recipes = recorded_recipes(study)
    for recipe in sorted(recipes, key=place_of):
        runs, (experiment, framework, epochs, image_size, dtype, *_) = recipes[recipe], recipe
        interval = results_of(study, runs).interval()
        spread = "" if interval.seed_spread is None else f" ± {interval.seed_spread:.3f}"
        found.append(
            {
                "experiment": experiment,
                "framework": framework,
                "pixels": image_size,
                "epochs": epochs,
                "dtype": dtype,
                "seeds": len(runs),
                "training": f"{np.mean([training_accuracy(run) for run in runs]):.3f}",
                "validation, mean of the last five [95 %]": f"{interval}{spread}",
                "best epochs": f"{results_of(study, runs, 'best').correct.mean():.3f}",
                "minutes a run": f"{np.mean([run.minutes for run in runs]):.1f}",
            }
        )
    return pd.DataFrame(found)


def verdicts_report(study: Study, questions: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return the verdict on each of the `questions` that recorded runs can answer: one row per pair of experiments.

    Both sides of a pair share framework, pixels, epochs and dtype where such runs exist, and the seeds; of several such
    settings the one with three seeds, then most pixels and epochs is taken. Intervals are at 1 − .05/m for m questions.
    """
    recipes, rows = recorded_recipes(study), []
    for first, second in questions:
        if pair := _pair(recipes, first, second):
            (key_a, a), (key_b, b) = pair
            row = compare_runs(study, a, b, len(questions), (first, second)).row
            setting = ", ".join(f"{k[1]} {k[3]} px {k[2]} epochs" for k in dict.fromkeys((key_a, key_b)))
            rows.append({"comparison": row.pop("comparison"), "setting": _shared(setting)} | row)
    return pd.DataFrame(rows)


def framework_verdicts(study: Study, experiment: str) -> pd.DataFrame:
    """Compare an experiment's recorded full runs between frameworks: one row of `comparison_table` per pair.

    m is the number of pairs of frameworks. No rows where fewer than two frameworks share seeds.
    """
    rows = full_runs(study)
    rows = rows[rows["experiment"] == experiment]
    tables = []
    for _, alike in rows.groupby(["epochs", "image_size", "dtype", "weights"], sort=True):
        sides = {name: [load_run(study, run) for run in side["run"]] for name, side in alike.groupby("framework")}
        pairs = [pair for pair in itertools.combinations(sides, 2) if _seeds(sides[pair[0]]) & _seeds(sides[pair[1]])]
        found = [compare_runs(study, sides[a], sides[b], len(pairs), (a, b)) for a, b in pairs]
        tables.append(comparison_table(found))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def write_report(study: Study) -> str:
    """Write the study's tables to its report.md, and return them as Markdown."""
    tables = {
        "Recipes": recipes_report(study),
        f"What each step adds, on this split (intervals at 1 − .05/{len(STEPS)})": verdicts_report(study, STEPS),
        f"Other recipes, on this split (intervals at 1 − .05/{len(RECIPES)})": verdicts_report(study, RECIPES),
        "Runs": runs_report(study),
    }
    text = "\n".join(f"## {title}\n\n{to_markdown(table)}" for title, table in tables.items() if len(table))
    (study.folder / "report.md").write_text(text, encoding="utf-8")
    return text


def to_markdown(table: pd.DataFrame) -> str:
    """Write a table as Markdown, one line per row."""
    lines = [table.columns.tolist(), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _pair(recipes: Mapping[tuple, list[Run]], first: str, second: str) -> tuple | None:
    """Return the recipe of each of two experiments, with its runs, by which they are compared; None without any."""
    sides = [[(key, runs) for key, runs in recipes.items() if key[0] == name] for name in (first, second)]
    pairs = [pair for pair in itertools.product(*sides) if _seeds(pair[0][1]) & _seeds(pair[1][1])]
    pairs = [pair for pair in pairs if _are_alike(*pair)] or pairs
    return max(pairs, key=lambda pair: _worth(*pair), default=None)


def _are_alike(a: tuple, b: tuple) -> bool:
    """Tell whether two recipes share framework, epochs, pixels and dtype."""
    return a[0][1:5] == b[0][1:5]


def _seeds(runs: Sequence[Run]) -> set[int]:
    return {int(run.row["seed"]) for run in runs}


def _worth(a: tuple, b: tuple) -> tuple:
    """Rank a pair of recipes: enough seeds for a claim first, then pixels and epochs, then seeds."""
    shared = len(_seeds(a[1]) & _seeds(b[1]))
    return shared >= 3, a[0][3] + b[0][3], a[0][2] + b[0][2], shared


def _shared(setting: str) -> str:
    return " and ".join(dict.fromkeys(setting.split(", ")))
