"""The photo check: which model does this photo show, and is it the one that the listing claims?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carspotter.models import runs
from carspotter.paths import Study
from carspotter.photos.images import UnreadablePhoto, decode_image


@dataclass(frozen=True)
class Answer:
    """What the check says of one photo.

    `verdict` is "match" or "other_model" when a model was claimed, "named" when none was, and "unusable" when the file
    cannot be read as a photo; `probabilities` is empty then. Probabilities are the model's own, not yet calibrated.
    """

    photo: str
    verdict: str
    label: str | None
    probabilities: dict[str, float]
    reason: str
    run: str

    def __str__(self) -> str:
        return f"{self.photo}: {self.verdict}: {self.reason}"


class PhotoCheck:
    """A recorded run, ready to answer; `PhotoCheck.load` finds one."""

    def __init__(self, run: runs.Run):
        self.run = run
        self.image_size = int(run.spec["image_size"])

    @classmethod
    def load(cls, study: Study, run_id: str | None = None) -> PhotoCheck:
        """Load run `run_id` of a study, or else its best run on validation whose checkpoint is on this machine.

        Raises FileNotFoundError when there is no such run, and says how to train one.
        """
        if run_id is not None:
            return cls(runs.load_run(study, run_id))
        recorded = runs.read_runs(study)
        for candidate in recorded.sort_values("best_validation_accuracy", ascending=False, kind="stable")["run"]:
            run = runs.load_run(study, candidate)
            if run.has_checkpoint:
                return cls(run)
        raise FileNotFoundError(
            f"study {study.name} has {len(recorded)} recorded runs and no checkpoint on this machine; "
            f"train one: python -m carspotter train augmentation --study {study.name}"
        )

    def check(self, photo: Path | bytes, claim: str | None = None) -> Answer:
        """Answer for one photo, given as a file or its bytes, and optionally the class that the listing claims.

        Raises ValueError for a claim that the model does not know. An unreadable photo is an answer, not an error.
        """
        names = self.run.class_names
        if claim is not None and claim not in names:
            raise ValueError(f"claim {claim!r} is not a class of {self.run.id}; it knows {', '.join(names)}")
        title = Path(photo).name if isinstance(photo, (str, Path)) else "photo"
        try:
            image = decode_image(photo, self.image_size)
        except UnreadablePhoto as error:
            return Answer(title, "unusable", None, {}, str(error), self.run.id)
        probabilities = self.run.predict(image[np.newaxis])[0]
        best = int(probabilities.argmax())
        label, share = names[best], f"p = {probabilities[best]:.2f}"
        if claim is None:
            verdict, reason = "named", f"looks like {label} ({share})"
        elif claim == label:
            verdict, reason = "match", f"looks like {label} as claimed ({share})"
        else:
            verdict, reason = "other_model", f"claimed {claim}, looks like {label} ({share})"
        rounded = {name: round(float(p), 6) for name, p in zip(names, probabilities, strict=True)}
        return Answer(title, verdict, label, rounded, reason, self.run.id)
