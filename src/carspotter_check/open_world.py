"""What a photo is unlike: distance to the known photos of each class and to everything else that is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

OTHER_MODEL = "other model"  # the kind of photos that show a car, but none of the classes
NEIGHBOURS = 5


@dataclass(frozen=True)
class Known:
    photos: np.ndarray
    passed: float = 0.95

    def compare(self, features: np.ndarray, number: int) -> tuple[float, str | None]:
        return 0.0, None

    @classmethod
    def load(cls, path: Path, classes: int) -> Known:
        raise NotImplementedError
