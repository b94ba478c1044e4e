"""Every figure of the study, in one look: colour-blind safe, labelled, small enough for a notebook in git."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, ImageOps

# Okabe and Ito's colours, told apart by colour-blind readers too: https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A8A8A"
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


def photo_grid(
    photos: Sequence[Path | np.ndarray],
    captions: Sequence[str],
    colours: Sequence[str] | None = None,
    columns: int = 6,
    title: str = "",
) -> Figure:
    """Draw photos in a grid, each with a caption under it and, where `colours` are given, a coloured frame.

    `photos`: files, shown upright and uncropped, or uint8 arrays (H, W, 3). A file that cannot be decoded is shown as
    an empty frame, since a grid of rejected photos must be able to show an unreadable one.
    """
    rows = max(1, -(-len(photos) // columns))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 1.75 * rows), squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for number, (photo, caption, axis) in enumerate(zip(photos, captions, axes.flat, strict=False)):
            axis.imshow(_thumbnail(photo))
            axis.set_title(caption, fontsize=8, fontweight="normal", loc="center")
            if colours is not None:
                axis.set_axis_on()
                axis.set(xticks=[], yticks=[])
                for spine in axis.spines.values():
                    spine.set(visible=True, color=colours[number], linewidth=3)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        return _finish(figure)


def count_bars(counts: pd.DataFrame, title: str = "", unit: str = "photos") -> Figure:
    """Draw horizontal stacked bars: one bar per row of `counts`, one colour per column, numbers written in."""
    colours = [
        SPLIT_COLOURS.get(name, (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)[i % 6]) for i, name in enumerate(counts)
    ]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8, 0.9 + 0.42 * len(counts)))
        left = np.zeros(len(counts))
        for name, colour in zip(counts, colours, strict=True):
            bars = axis.barh([str(label) for label in counts.index], counts[name], left=left, color=colour, label=name)
            labels = [f"{int(n):,}" if n >= 0.04 * counts.to_numpy().sum(1).max() else "" for n in counts[name]]
            axis.bar_label(bars, labels, label_type="center", color="white", fontsize=9)
            left += counts[name].to_numpy()
        axis.invert_yaxis()
        axis.set_xlabel(unit)
        if counts.shape[1] > 1:
            axis.legend(ncols=counts.shape[1], loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
            axis.set_title(title, pad=26)
        else:
            axis.set_title(title)
        return _finish(figure)


def learning_curves(histories: dict[str, pd.DataFrame], title: str = "") -> Figure:
    """Draw accuracy and loss by epoch, training dashed and validation solid, one colour per run.

    `histories`: name -> table with epoch, train_accuracy, validation_accuracy, train_loss, validation_loss. The dot
    marks the epoch with the best validation accuracy, which is the optimistic one.
    """
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
        for (name, history), colour in zip(histories.items(), (BLUE, ORANGE, GREEN, PURPLE, RED, GREY), strict=False):
            epochs = history["epoch"]
            for axis, measure in ((left, "accuracy"), (right, "loss")):
                axis.plot(epochs, history[f"train_{measure}"], "--", color=colour, label=f"{name}, training")
                axis.plot(epochs, history[f"validation_{measure}"], color=colour, label=f"{name}, validation")
            best = history["validation_accuracy"].idxmax()
            left.plot(epochs[best], history["validation_accuracy"][best], "o", color=colour)
        left.set(xlabel="epoch", ylabel="accuracy", title=title or "Accuracy")
        right.set(xlabel="epoch", ylabel="log loss (nats)", title="Loss")
        left.legend(fontsize=8)
        return _finish(figure)


def confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix of counts (true class by row, prediction by column), shaded by share of its row."""
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    with plt.rc_context(STYLE):
        side = 2.2 + 0.7 * len(class_names)
        figure, axis = plt.subplots(figsize=(side + 0.6, side))
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        ticks = range(len(class_names))
        axis.set(xticks=ticks, yticks=ticks, xlabel="named by the model", ylabel="labelled", title=title)
        axis.set_xticklabels(class_names)
        axis.set_yticklabels(class_names)
        for (row, column), number in np.ndenumerate(confusion):
            colour = "white" if share[row, column] > 0.5 else "black"
            text = f"{int(number)}\n{share[row, column]:.0%}"
            axis.text(column, row, text, ha="center", va="center", color=colour)
        axis.spines[:].set_visible(False)
        return _finish(figure)


def interval_chart(intervals: dict, title: str = "", unit: str = "validation accuracy") -> Figure:
    """Draw estimates with their intervals, one line each. `intervals`: name -> `evidence.comparison.Interval`."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 1.0 + 0.4 * len(intervals)))
        for row, interval in enumerate(intervals.values()):
            axis.plot([interval.low, interval.high], [row, row], color=BLUE, linewidth=2)
            axis.plot(interval.estimate, row, "o", color=BLUE)
            axis.annotate(
                str(interval), (interval.high, row), (6, 0), textcoords="offset points", va="center", fontsize=9
            )
        axis.set_yticks(range(len(intervals)), list(intervals))
        axis.set_ylim(len(intervals) - 0.5, -0.5)
        axis.margins(x=0.35)
        axis.set(xlabel=f"{unit}, 95 % interval", title=title)
        return _finish(figure)


def coverage_risk_curve(
    coverage: np.ndarray, risk: np.ndarray, asked: float, chosen: float | None = None, title: str = ""
) -> Figure:
    """Draw the share of wrong answers against the share of photos answered, surest first (`check.rejection`).

    `coverage`, `risk`: (N,), shares; `asked`: the risk that was asked for, a dashed line; `chosen`: the coverage that
    meets it, a dot, or None where none does.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.5, 3.2))
        axis.plot(coverage, risk, color=BLUE, drawstyle="steps-pre", label="validation photos")
        axis.axhline(asked, color=ORANGE, linestyle="--", linewidth=1.2, label=f"risk asked for: {asked:.0%}")
        if chosen:
            axis.plot(chosen, np.interp(chosen, coverage, risk), "o", color=ORANGE, label=f"answers {chosen:.0%}")
        axis.set(xlim=(0, 1.02), ylim=(0, max(0.05, 1.1 * float(risk.max()))), title=title)
        axis.set(xlabel="share of photos answered, surest first", ylabel="share wrong of the answered")
        axis.legend(frameon=False)
        return _finish(figure)


def _thumbnail(photo: Path | np.ndarray, side: int = 160) -> Image.Image:
    if isinstance(photo, np.ndarray):
        image = Image.fromarray(photo)
    else:
        try:
            with Image.open(photo) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            image = Image.new("RGB", (side, side * 3 // 4), "#DDDDDD")
    return ImageOps.contain(image, (side, side))


def _finish(figure: Figure) -> Figure:
    # A notebook shows the figure that a cell gives back; left open, pyplot might show it a second time.
    figure.tight_layout()
    plt.close(figure)
    return figure
