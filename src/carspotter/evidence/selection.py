"""Choosing on validation: which recorded runs count, and which is chosen for test, export and photo check."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from carspotter.evidence.intervals import group_means
from carspotter.evidence.results import results_of
from carspotter.models.history import halves
from carspotter.models.store import Run, how_to_train, load_run, read_runs, subset_digest
from carspotter.paths import Study


class Recipe(NamedTuple):
    """What the seeds of a recipe have in common: columns of runs.csv."""

    experiment: str
    framework: str
    epochs: int
    image_size: int
    dtype: str
    weights: str

    def __str__(self) -> str:
        return ", ".join(str(part) for part in self if part != "")


def full_runs(study: Study, quick: bool = False) -> pd.DataFrame:
    """Return the runs on all training photos of the newest split and recipe version; quick ones where asked for."""
    rows = read_runs(study)
    rows = rows[((rows["quick"].astype(str) == "True") == quick) & (rows["train_on"] == "")]
    versions = pd.to_numeric(rows["recipe_version"], errors="coerce").fillna(0)
    rows = rows[versions == versions.max()]
    return rows[rows["split_version"].isin(rows.sort_values("finished_time")["split_version"].iloc[-1:])]


def recorded_recipes(study: Study, quick: bool = False) -> dict[Recipe, list[Run]]:
    """Return the runs of `full_runs` by recipe: the seeds of each in their order."""
    recipes = full_runs(study, quick).groupby(list(Recipe._fields), sort=False)
    return {
        Recipe(*recipe): [load_run(study, run) for run in seeds.sort_values("seed")["run"]] for recipe, seeds in recipes
    }


def find_runs(study: Study, experiment: str, **settings) -> list[Run]:
    """Return all seeds of one recorded recipe of this experiment: the one trained longest on the largest images.

    `settings` are columns of runs.csv that must hold this value, as in `framework="torch", epochs=100`.
    """
    wanted = {"experiment": experiment, **settings}
    recipes = [
        runs
        for runs in recorded_recipes(study).values()
        if all(runs[0].row[column] == value for column, value in wanted.items())
    ]
    return max(recipes, key=lambda runs: (runs[0].row["epochs"], runs[0].row["image_size"], len(runs)), default=[])


def find_subset_runs(study: Study, experiment: str, subset: Collection[str], **settings) -> list[Run]:
    """Return the recorded runs of this experiment that were trained on these training photos (sha256) alone."""
    rows = read_runs(study)
    rows = rows[(rows["experiment"] == experiment) & (rows["train_on"] == subset_digest(subset))]
    for column, value in settings.items():
        rows = rows[rows[column] == value]
    return [load_run(study, run) for run in rows.sort_values("seed")["run"]]


def choose_run(study: Study, with_checkpoint: bool = False) -> tuple[Run, pd.DataFrame]:
    """Choose on validation, by the one-standard-error rule with parameters as the cost; return run and table.

    The run is the chosen recipe's first seed. `with_checkpoint`, for the photo check: only among runs whose checkpoint
    is on this machine, quick ones where there are no others, and by the half of the photos that does not certify
    (`models.history.halves`). Raises FileNotFoundError where there is none to choose.
    """
    for quick in (False, True) if with_checkpoint else (False,):
        recipes = recorded_recipes(study, quick)
        if with_checkpoint:
            recipes = {key: [run for run in runs if run.checkpoint.exists()] for key, runs in recipes.items()}
        recipes = {key: runs for key, runs in recipes.items() if runs}
        if recipes:
            break
    else:
        what = "run with a checkpoint on this machine" if with_checkpoint else "full run"
        raise FileNotFoundError(
            f"{study.runs_table}: no {what} to choose among {len(read_runs(study))} recorded ones; "
            f"{how_to_train(study)}"
        )
    correct, costs, first, groups = {}, {}, {}, None
    for recipe, runs in sorted(recipes.items()):
        name = str(recipe)
        found = results_of(study, runs)
        asked = halves(found.groups) if with_checkpoint else np.full(len(found.groups), True)
        correct[name], groups = found.correct[:, asked], found.groups[asked]
        costs[name], first[name] = float(runs[0].row["parameters"]), runs[0]
    chosen, table = one_standard_error_rule(correct, groups, costs)
    return first[chosen], table


def one_standard_error_rule(
    correct: Mapping[str, np.ndarray], groups, costs: Mapping[str, float]
) -> tuple[str, pd.DataFrame]:
    """Choose the cheapest model whose validation accuracy lies within one standard error of the best one's.

    `correct`: model -> bool (N,), or (seeds, N), on the same photos; `groups`: (N,); `costs`: model -> any cost.
    Returns the name and a table, best first: model, accuracy, standard_error (over groups), cost, within (that range).
    Method: Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984, section 3.4.3.
    """
    rows = []
    for model, values in correct.items():
        values = np.atleast_2d(np.asarray(values, float)).mean(axis=0, keepdims=True)
        means, influences, sizes = group_means(values, groups)
        error = float(np.sqrt((influences**2).sum() * len(sizes) / max(1, len(sizes) - 1)))
        rows.append({"model": model, "accuracy": means[0], "standard_error": error, "cost": costs[model]})
    # between equals the cheaper comes first, so that an expensive one cannot set the standard
    table = pd.DataFrame(rows).sort_values(["accuracy", "cost"], ascending=[False, True], kind="stable")
    table = table.reset_index(drop=True)
    table["within"] = table["accuracy"] >= table["accuracy"][0] - table["standard_error"][0]
    cheapest = table[table["within"]].sort_values("cost", kind="stable").iloc[0]
    return str(cheapest["model"]), table


def pareto_front(costs, accuracies) -> np.ndarray:
    """Return which models are on the front, bool (N,): none costs no more and is no worse, unless it equals them."""
    costs, accuracies = np.asarray(costs, float), np.asarray(accuracies, float)
    cheap, good = costs[:, None] <= costs, accuracies[:, None] >= accuracies
    better = (costs[:, None] < costs) | (accuracies[:, None] > accuracies)
    return ~(cheap & good & better).any(axis=0)
