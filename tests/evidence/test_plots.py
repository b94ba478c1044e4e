"""Figures: what they are told to show can be read off them."""

import itertools
from types import SimpleNamespace

import pandas as pd

from carspotter.evidence.intervals import Interval
from carspotter.evidence.plots import BLUE, ORANGE, cost_chart, interval_chart, training_curves


def test_an_interval_chart_names_levels_and_shows_what_counts_as_equal():
    axis = interval_chart({"b": Interval(0.02, -0.01, 0.05, 9, 9, 0.9875)}, margin=0.03).axes[0]
    assert "in points; green: counts as equal; 98.75 %" in axis.get_xlabel()
    assert axis.texts[0].get_text() == "+2.0 [-1.0, +5.0]"
    assert [patch.get_x() for patch in axis.patches] == [-3.0]


def test_an_interval_chart_ends_where_accuracy_does():
    axis = interval_chart({"cnn": Interval(0.97, 0.8, 1.0, 9, 9, 0.95)}).axes[0]
    assert axis.get_xlim()[0] < 0.8 and axis.get_xlim()[1] == 1


def test_training_curves_end_at_one():
    columns = ("train_accuracy", "validation_accuracy", "train_loss", "validation_loss")
    history = pd.DataFrame({"epoch": [1, 2]} | {column: [0.9, 1.0] for column in columns})
    left, right = training_curves({"cnn": history}, overfits_from={"cnn": 2}).axes
    assert left.get_ylim()[1] <= 1.01 and "cnn overfits from epoch 2" in right.get_legend_handles_labels()[1]


def test_the_dot_of_a_recorded_run_is_the_epoch_that_was_kept():
    columns = ("train_accuracy", "train_loss", "validation_loss", "choosing_loss")
    history = pd.DataFrame({"epoch": [1, 2, 3]} | {column: [0.9, 0.8, 0.7] for column in columns})
    history = history.assign(validation_accuracy=[0.7, 0.8, 0.9], choosing_accuracy=[0.6, 0.9, 0.8])
    left, _ = training_curves({"cnn": history}).axes
    dots = [line for line in left.get_lines() if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [[2], []] and dots[1].get_label().startswith("dot: best epoch")


def test_training_curves_take_what_fit_returns():
    measures = {name: [0.5, 0.75] for name in ("accuracy", "val_accuracy", "loss", "val_loss")}
    left, _ = training_curves({"cnn": SimpleNamespace(history=measures, epoch=[0, 1])}).axes
    training, validation = left.get_lines()[:2]
    assert list(training.get_xdata()) == [1, 2] and list(validation.get_ydata()) == [0.5, 0.75]


def test_the_labels_of_a_cost_chart_do_not_cover_each_other():
    recipes = {"recipe": ["plain_cnn", "vgg16", "deep_cnn"], "processor minutes": [3.0, 4.0, 3.5]}
    table = pd.DataFrame(recipes | {"accuracy": [0.80, 0.81, 0.803]})
    figure = cost_chart({"study": table})
    figure.canvas.draw()
    places = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(places, 2))
    assert [line.get_color() for line in figure.axes[0].get_lines()] == [BLUE, ORANGE, BLUE]
