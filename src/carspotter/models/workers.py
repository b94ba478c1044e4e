"""One model on several devices: the processes that train it together, and the share that each of them takes.

torchrun starts them for PyTorch; for TensorFlow each is started with a TF_CONFIG. A batch stays what it is in the spec:
each process takes its part, and the gradients are added up. So N processes take the steps of one within float error, at
the price of sending all gradients at each step. Not so with dropout, whose masks differ from process to process, and
batch norm, which sees a process' own part: those are other runs, of the same name. The first process prints, writes and
records; all must see the same folders.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple


class Worker(NamedTuple):
    """One process of those that train a model together: its number, from 0, and how many there are."""

    number: int = 0
    count: int = 1


def this_worker(framework: str) -> Worker:
    """Give this process' place among those that train one model in `framework`; (0, 1) where it trains alone.

    Raises ValueError for a TF_CONFIG that is none.
    """
    if framework == "torch" and "TORCHELASTIC_RUN_ID" in os.environ:
        return Worker(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if framework == "tensorflow" and "TF_CONFIG" in os.environ:
        try:
            config = json.loads(os.environ["TF_CONFIG"])
            places = [
                (kind, number) for kind in ("chief", "worker") for number in range(len(config["cluster"].get(kind, [])))
            ]
            return Worker(places.index((config["task"]["type"], int(config["task"]["index"]))), len(places))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"TF_CONFIG is {os.environ['TF_CONFIG']!r}; it wants the addresses of all processes and this one's "
                'place, {"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", "index": 0}}'
            ) from error
    return Worker()
