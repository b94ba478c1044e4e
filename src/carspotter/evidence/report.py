"""The tables of a study's recorded runs, as `carspotter report` prints them and results/README.md shows them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from carspotter.evidence.comparison import SEEDS_FOR_A_CLAIM, Comparison, comparison_table
from carspotter.evidence.results import compare_runs, results_of, training_accuracy
from carspotter.evidence.selection import Recipe, full_runs, recorded_recipes
from carspotter.models.experiments import SERIES
from carspotter.models.store import Run, how_to_train, load_run, read_runs
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
    ("fast_recipe", "fast_recipe_dropout"),
)


@dataclass(frozen=True)
class Step:
    """One step of the series on one study: the recorded seeds before and after it, and their comparison."""

    before: list[Run]
    after: list[Run]
    comparison: Comparison

    @property
    def histories(self) -> dict[str, pd.DataFrame]:
        """Return the history of one seed of each side, for `plots.training_curves`."""
        return {runs[0].row["experiment"]: runs[0].history for runs in (self.before, self.after)}

    @property
    def setting(self) -> str:
        """Return photos, pixels and epochs, which both sides share."""
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
    """Return what a step of the series changed in each study that has comparable runs of both sides."""
    steps = {}
    for name, study in studies.items():
        recipes = recorded_recipes(study)
        pair = _pair(recipes, before, after)
        if pair and _are_alike(*pair):
            earlier, later = recipes[pair[0]], recipes[pair[1]]
            steps[name] = Step(earlier, later, compare_runs(study, earlier, later, comparisons=len(STEPS)))
    return steps


def runs_report(study: Study) -> pd.DataFrame:
    """Return one row per recorded run on all training photos. Raises FileNotFoundError without any."""
    recorded = read_runs(study)
    recorded = recorded[recorded["train_on"] == ""]
    if recorded.empty:
        raise FileNotFoundError(f"{study.runs_table} holds no runs; {how_to_train(study)}")
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
    """Return one row per recipe of `recorded_recipes`, all its seeds together, in the order of the series.

    Validation accuracy is the mean of the last five epochs; its interval is over seeds and groups, ± between seeds.
    """
    places = {name: place for place, name in enumerate(SERIES)}

    def place_of(recipe: Recipe) -> tuple:
        place = places.get(recipe.experiment, len(places))
        return place, recipe.experiment, -recipe.image_size, -recipe.epochs, recipe.framework

    found = []
    recipes = recorded_recipes(study)
    for recipe in sorted(recipes, key=place_of):
        runs = recipes[recipe]
        interval = results_of(study, runs).interval()
        spread = "" if interval.seed_spread is None else f" ± {interval.seed_spread:.3f}"
        found.append(
            {
                "experiment": recipe.experiment,
                "framework": recipe.framework,
                "pixels": recipe.image_size,
                "epochs": recipe.epochs,
                "dtype": recipe.dtype,
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

    Both sides share framework, pixels, epochs and dtype where such runs exist, and the seeds; the setting with three
    seeds, then most pixels and epochs is taken. Intervals are at 1 − .05/m for m questions.
    """
    recipes, rows = recorded_recipes(study), []
    for first, second in questions:
        if pair := _pair(recipes, first, second):
            row = compare_runs(study, recipes[pair[0]], recipes[pair[1]], len(questions), (first, second)).row
            settings = [f"{side.framework} {side.image_size} px {side.epochs} epochs" for side in pair]
            rows.append({"comparison": row.pop("comparison"), "setting": " and ".join(dict.fromkeys(settings))} | row)
    return pd.DataFrame(rows)


def framework_runs(study: Study, experiment: str) -> dict[str, list[Run]]:
    """Return an experiment's full runs by framework, at the pixels, epochs and dtype that most frameworks share."""
    rows = full_runs(study)
    rows = rows[rows["experiment"] == experiment]
    settings = [alike for _, alike in rows.groupby(["epochs", "image_size", "dtype", "weights"], sort=True)]
    shared = max(settings, key=lambda alike: (alike["framework"].nunique(), len(alike)), default=rows)
    return {name: [load_run(study, run) for run in side["run"]] for name, side in shared.groupby("framework")}


def framework_verdicts(study: Study, experiment: str) -> pd.DataFrame:
    """Compare the frameworks of `framework_runs`: one row of `comparison_table` per pair that shares a seed."""
    sides = framework_runs(study, experiment)
    pairs = [pair for pair in itertools.combinations(sides, 2) if _seeds(sides[pair[0]]) & _seeds(sides[pair[1]])]
    return comparison_table([compare_runs(study, sides[a], sides[b], len(pairs), (a, b)) for a, b in pairs])


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


def _pair(recipes: Mapping[Recipe, list[Run]], first: str, second: str) -> tuple[Recipe, Recipe] | None:
    """Return the recipes by which two experiments are compared; None without any that share a seed."""
    sides = [[recipe for recipe in recipes if recipe.experiment == name] for name in (first, second)]
    shared = {(a, b): len(_seeds(recipes[a]) & _seeds(recipes[b])) for a, b in itertools.product(*sides)}
    pairs = [pair for pair in shared if shared[pair]]
    pairs = [pair for pair in pairs if _are_alike(*pair)] or pairs

    def worth(pair: tuple[Recipe, Recipe]) -> tuple:
        pixels, epochs = (sum(getattr(side, name) for side in pair) for name in ("image_size", "epochs"))
        return shared[pair] >= SEEDS_FOR_A_CLAIM, pixels, epochs, shared[pair]

    return max(pairs, key=worth, default=None)


def _are_alike(a: Recipe, b: Recipe) -> bool:
    """Tell whether two recipes share framework, epochs, pixels and dtype."""
    return a[1:5] == b[1:5]


def _seeds(runs: Sequence[Run]) -> set[int]:
    return {int(run.row["seed"]) for run in runs}
