"""Progress of long work: a bar on a terminal and in a notebook, a plain line now and then in a log."""

import sys
import warnings

with warnings.catch_warnings():  # without ipywidgets the bar in a notebook is one of text; that needs no warning
    warnings.simplefilter("ignore")
    from tqdm import auto, tqdm

SECONDS_BETWEEN_LINES = 15


def progress_bar(total: int, what: str, unit: str, shown: bool = True, done: int = 0) -> tqdm:
    """Return a bar to be used in `with`, and moved on by its `update(count)`.

    `total`: how many units there are; `done`: how many an earlier, interrupted run has finished.
    """
    options = {"total": total, "initial": done, "desc": what, "unit": f" {unit}", "disable": not shown or done >= total}
    if sys.stderr.isatty() or _in_notebook():
        bar = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
        return auto.tqdm(**options, dynamic_ncols=True, bar_format=bar)
    return tqdm(
        **options,
        file=_Lines(),
        delay=SECONDS_BETWEEN_LINES,
        mininterval=SECONDS_BETWEEN_LINES,
        miniters=1,  # else tqdm's monitor writes a line, and the next update another
        bar_format="{desc}: {n_fmt} of {total_fmt}{unit}, {rate_noinv_fmt}, "
        "{elapsed} so far, {remaining} left{postfix}",
    )


def _in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this code; tests and tools import ipykernel too."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel")


class _Lines:
    """A stream that writes a line for each of tqdm's overwrites that has moved on."""

    count = ""

    def write(self, text: str) -> None:
        count = text.strip().split(",")[0]
        if count and count != self.count:
            sys.stderr.write(text.strip() + "\n")
            self.count = count

    def flush(self) -> None:
        sys.stderr.flush()
