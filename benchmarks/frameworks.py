"""What each framework costs on this machine, the same recipe in each: python benchmarks/frameworks.py

Training photos/s, start-up, peak memory, lines of our sibling file, export paths; and the accuracy of the recorded runs
with the verdict on their equality, where a study has runs of all three (`python -m carspotter sweep` makes them).
"""

from __future__ import annotations

import argparse

from machine import describe

from carspotter.evidence.frameworks import compare_frameworks
from carspotter.evidence.report import framework_verdicts, to_markdown
from carspotter.paths import Study
from carspotter_check.export import FORMATS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="batch_norm", help="default: %(default)s")
    parser.add_argument("--photos", type=int, default=240, help="generated, per epoch (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=150, help="pixels (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes per framework (default %(default)s)")
    parser.add_argument("--study", default="sample", help="whose recorded runs are compared (default %(default)s)")
    options = parser.parse_args()
    print(describe("keras", "torch", "tensorflow"))
    table = compare_frameworks(options.experiment, options.photos, options.image_size, rounds=options.rounds)
    table["exports"] = [", ".join(FORMATS[name]) for name in table["framework"]]
    print(to_markdown(table.round(2)))
    verdicts = framework_verdicts(Study.open(options.study), options.experiment)
    print(to_markdown(verdicts) if len(verdicts) else f"no runs of {options.experiment} in two frameworks to compare")


if __name__ == "__main__":
    main()
