"""Every figure of the study, in one style: colour-blind safe, labelled, small enough for a notebook in git."""

import functools
import itertools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image, ImageOps

from carspotter.models.history import best_epoch
from carspotter.photos.images import thumbnail

# Okabe and Ito's colours, told apart by colour-blind readers too: https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A8A8A"
BROWN, SKY = "#7A4B1E", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY, SKY, BROWN)
SPLIT_COLOURS = {"train": BLUE, "validation": ORANGE, "test": GREEN, "shifted": PURPLE, "excluded": GREY}
STYLE = {
    "figure.dpi": 80,  # keeps a notebook with ten figures under 600 KB
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "font.size": 10,
}
TITLE = {"x": 0.01, "ha": "left", "fontsize": 11, "fontweight": "bold"}


def drawn(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the style of the study; a notebook shows the figure that a cell returns once."""

    @functools.wraps(draw)
    def drawing(*arguments, **options) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*arguments, **options)
            figure.tight_layout()
            plt.close(figure)
            return figure

    return drawing


@drawn
def photo_grid(
    photos: Sequence[Path | np.ndarray],
    captions: Sequence[str],
    colours: Sequence[str] | None = None,
    columns: int = 6,
    title: str = "",
) -> Figure:
    """Draw photos in a grid, each with a caption under it and, where `colours` are given, a coloured frame.

    `photos`: files, shown upright and uncropped, or uint8 arrays (H, W, 3). An unreadable file is grey.
    """
    rows = max(1, -(-len(photos) // columns))
    captions = [textwrap.fill(caption, 32) for caption in captions]
    height = 1.6 + 0.25 * max((caption.count("\n") + 1 for caption in captions), default=1)
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, height * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (photo, caption, axis) in enumerate(zip(photos, captions, axes.flat, strict=False)):
        is_array = isinstance(photo, np.ndarray)
        axis.imshow(ImageOps.contain(Image.fromarray(photo), (160, 160)) if is_array else thumbnail(photo, 160))
        axis.set_title(caption, fontsize=8, fontweight="normal", loc="center")
        if colours is not None:
            axis.set_axis_on()
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color=colours[number], linewidth=3)
    if title:
        figure.suptitle(title, **TITLE)
    return figure


@drawn
def count_bars(counts: pd.DataFrame, title: str = "", unit: str = "photos") -> Figure:
    """Draw horizontal stacked bars: one bar per row of `counts`, one colour per column, numbers written in."""
    colours = [SPLIT_COLOURS.get(name, colour) for name, colour in zip(counts, itertools.cycle(COLOURS), strict=False)]
    totals = counts.to_numpy().sum(1)
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.42 * len(counts)))
    left = np.zeros(len(counts))
    for name, colour in zip(counts, colours, strict=True):
        bars = axis.barh([str(label) for label in counts.index], counts[name], left=left, color=colour, label=name)
        labels = [f"{int(n):,}" if n >= 0.06 * totals.max() else "" for n in counts[name]]
        axis.bar_label(bars, labels, label_type="center", color="white", fontsize=9)
        left += counts[name].to_numpy()
    small = ((counts.to_numpy() > 0) & (counts.to_numpy() < 0.06 * totals.max())).any(1)
    behind = [f"{int(total):,}" if some else "" for total, some in zip(totals, small, strict=True)]
    axis.bar_label(bars, behind, padding=3, fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    if counts.shape[1] > 1:
        axis.legend(ncols=counts.shape[1], loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
        axis.set_title(title, pad=26)
    else:
        axis.set_title(title)
    return figure


@drawn
def training_curves(
    histories: dict[str, pd.DataFrame], title: str = "", overfits_from: dict[str, int | None] | None = None
) -> Figure:
    """Draw accuracy and loss by epoch, training dashed and validation solid, one colour per run, one title for both.

    `histories`: name -> `Run.history`, or what Keras' `fit` returns. The dot marks the best epoch: of a recorded run by
    the half of the validation photos that chooses. `overfits_from`: name -> epoch, a dotted line on the loss.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for (name, history), colour in zip(histories.items(), itertools.cycle(COLOURS), strict=False):
        if not isinstance(history, pd.DataFrame):
            history = _history_table(history)
        epochs = history["epoch"]
        for axis, measure in ((left, "accuracy"), (right, "loss")):
            axis.plot(epochs, history[f"train_{measure}"], "--", color=colour)
            axis.plot(epochs, history[f"validation_{measure}"], color=colour, label=name)
        recorded = "choosing_accuracy" in history
        best = best_epoch(history).name if recorded else history["validation_accuracy"].idxmax()
        left.plot(epochs[best], history["validation_accuracy"][best], "o", color=colour)
        if (start := (overfits_from or {}).get(name)) is not None:
            right.axvline(start, color=colour, linestyle=":", label=f"{name} overfits from epoch {start}")
    left.plot([], [], "--", color=GREY, label="dashed: training")
    left.plot([], [], "o", color=GREY, label="dot: best epoch")
    left.set(xlabel="epoch", ylabel="accuracy", title="Accuracy", ylim=(None, min(1.01, left.get_ylim()[1])))
    right.set(xlabel="epoch", ylabel="log loss (nats)", title="Loss")
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(fontsize=8)
    if starts := [line for line in right.lines if "overfits" in line.get_label()]:
        right.legend(handles=starts, fontsize=8)
    if title:
        figure.suptitle(title, **TITLE)
    return figure


@drawn
def confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix of counts (true class by row, prediction by column), shaded by share of its row."""
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 2.2 + 0.7 * len(class_names)
    figure, axis = plt.subplots(figsize=(side + 0.6, side))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(class_names))
    axis.set(xlabel="predicted", ylabel="labelled", title=title)
    axis.set_xticks(ticks, class_names)
    axis.set_yticks(ticks, class_names)
    for (row, column), number in np.ndenumerate(confusion):
        colour = "white" if share[row, column] > 0.5 else "black"
        text = f"{int(number)}\n{share[row, column]:.0%}"
        axis.text(column, row, text, ha="center", va="center", color=colour)
    axis.spines[:].set_visible(False)
    return figure


@drawn
def interval_chart(intervals: dict, title: str = "", unit: str = "validation accuracy", margin: float = 0) -> Figure:
    """Draw named intervals; with `margin` they are differences, in points, and a green band is what counts as equal."""
    figure, axis = plt.subplots(figsize=(7, 1.0 + 0.4 * len(intervals)))
    scale = 100 if margin else 1
    for row, interval in enumerate(intervals.values()):
        estimate, low, high = (scale * value for value in (interval.estimate, interval.low, interval.high))
        axis.plot([low, high], [row, row], color=BLUE, linewidth=2)
        axis.plot(estimate, row, "o", color=BLUE)
        words = interval.in_points if margin else str(interval)
        axis.text(1.02, row, words, transform=axis.get_yaxis_transform(), va="center", fontsize=9)
    if margin:
        axis.axvspan(-scale * margin, scale * margin, color=GREEN, alpha=0.12, linewidth=0)
        axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(intervals)), list(intervals))
    axis.set_ylim(len(intervals) - 0.5, -0.5)
    axis.margins(x=0.1)
    low, high = axis.get_xlim()
    axis.set_xlim(max(low, -scale), min(high, scale))
    axis.xaxis.set_major_locator(MaxNLocator(6))
    levels = sorted({interval.level for interval in intervals.values()})
    words = ", ".join(f"{level * 100:.4g} %" for level in levels)
    unit += " in points; green: counts as equal" if margin else ""
    axis.set(xlabel=f"{unit}; {words} interval", title=title)
    return figure


@drawn
def reliability_diagram(tables: dict[str, pd.DataFrame], title: str = "") -> Figure:
    """Draw accuracy against confidence from tables of `calibration.reliability`; large dots hold many photos."""
    figure, axis = plt.subplots(figsize=(4.8, 4.4))
    axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as sure as right")
    for (name, table), colour in zip(tables.items(), COLOURS, strict=False):
        share = table["photos"] / table["photos"].sum()
        axis.plot(table["confidence"], table["accuracy"], color=colour, linewidth=1, label=name)
        axis.scatter(table["confidence"], table["accuracy"], 20 + 300 * share, color=colour, alpha=0.6)
    lowest = min(float(table["low"].min()) for table in tables.values())
    axis.set(xlim=(lowest - 0.02, 1.02), ylim=(-0.04, 1.04), title=title)
    axis.set(xlabel="confidence (probability of the predicted class)\nlarger dots hold more photos")
    axis.set(ylabel="share classified correctly")
    axis.legend(fontsize=8, loc="upper left")
    return figure


@drawn
def decomposition_bars(decompositions: dict, title: str = "") -> Figure:
    """Draw the error of each recipe as bias and variance side by side: name -> `bias_variance.Decomposition`."""
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.65 * len(decompositions)))
    found, rows = list(decompositions.values()), np.arange(len(decompositions))
    for part, colour, offset in (("bias", BLUE, -0.2), ("variance", ORANGE, 0.2)):
        parts = [getattr(one, part) for one in found]
        axis.barh(rows + offset, [one.estimate for one in parts], 0.36, color=colour, label=part)
        axis.hlines(rows + offset, [one.low for one in parts], [one.high for one in parts], color="black", lw=1.2)
    axis.plot([one.error for one in found], rows, "D", color="black", markersize=5, label="error")
    axis.set_yticks(rows, [f"{name} ({one.models} models)" for name, one in decompositions.items()])
    axis.axvline(0, color="black", linewidth=0.8)
    axis.invert_yaxis()
    axis.set(xlabel="share of validation photos; 95 % intervals over photos, for these models", title=title)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@drawn
def cost_chart(tables: dict[str, pd.DataFrame], title: str = "") -> Figure:
    """Draw accuracy over processor minutes, a panel per study; tables have recipe, accuracy and "processor minutes"."""
    figure, axes = plt.subplots(1, len(tables), figsize=(12, 3.8), sharey=True, squeeze=False)
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        points = list(zip(table["recipe"], table["processor minutes"], table["accuracy"], strict=True))
        for recipe, minutes, accuracy in points:
            colour = ORANGE if recipe.startswith(("vgg", "mobile")) else BLUE
            axis.plot(minutes, accuracy, "o", color=colour)
            # A label goes a line lower for each dot that is just above: so neighbours do not cover each other.
            above = sum(0 < high - accuracy < 0.045 and 0.1 < cost / minutes < 10 for _, cost, high in points)
            offset = (5, -11 * above if above else 4)
            axis.annotate(recipe, (minutes, accuracy), xytext=offset, textcoords="offset points", fontsize=8)
        axis.set(xscale="log", xlabel="processor minutes a run", title=name, xlim=(0.1, 200))
    lowest = min(table["accuracy"].min() for table in tables.values())
    axes[0, 0].set(ylabel="validation accuracy", ylim=(lowest - 0.05, 1.01))
    figure.suptitle(title, **TITLE)
    return figure


@drawn
def forecast_chart(curves: dict, farthest: float, title: str = "") -> Figure:
    """Draw measured and forecast accuracies over training photos, up to `farthest`; name -> `LearningCurve`."""
    figure, axis = plt.subplots(figsize=(7.5, 4))
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        sizes = np.geomspace(curve.sizes.min(), max(farthest, curve.sizes.max()), 60)
        known = [curve.at(size) for size in sizes]
        axis.fill_between(sizes, [f.low for f in known], [f.high for f in known], color=colour, alpha=0.18, lw=0)
        seen, middle = sizes <= curve.sizes.max(), np.array([f.estimate for f in known])
        axis.plot(sizes[seen], middle[seen], color=colour)
        axis.plot(sizes[~seen], middle[~seen], color=colour, linestyle="--")
        axis.plot(curve.sizes, 1 - curve.errors, "o", color=colour, label=f"{name}, measured")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="training photos (log scale)", ylabel="validation accuracy, 95 % interval", title=title)
    axis.set_ylim(top=min(1.01, axis.get_ylim()[1]))
    axis.legend(fontsize=8, loc="lower right")
    return figure


def _history_table(fit) -> pd.DataFrame:
    """Return Keras' History as a table with the names of recorded runs."""
    table = pd.DataFrame(fit.history).rename(columns=lambda name: "train_" + name if name[:4] != "val_" else name)
    return table.rename(columns=lambda name: name.replace("val_", "validation_")).assign(epoch=np.add(fit.epoch, 1))
