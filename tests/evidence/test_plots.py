"""Figures that no notebook draws; those of the notebooks are drawn when the notebooks are run."""

import numpy as np
import pandas as pd

from carspotter.evidence.plots import growth_chart


def test_growth_is_drawn_as_measured_beside_a_line_in_proportion():
    steps = {"hash_seconds": [2.0, 0.2], "search_seconds": [30.0, 2.0], "confirm_seconds": [9.0, 0.5]}
    table = pd.DataFrame({"photos": [1000, 100], "peak_mb": [80.0, 40.0]} | steps)
    left, right = growth_chart(table).axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in left.lines}
    assert lines == {"hash": [0.2, 2], "search": [2, 30], "confirm": [0.5, 9], "in proportion": [2, 20]}
    np.testing.assert_array_equal(right.lines[0].get_xydata(), [[100, 40], [1000, 80]])
    assert {axis.get_xscale() for axis in (left, right)} == {axis.get_yscale() for axis in (left, right)} == {"log"}
