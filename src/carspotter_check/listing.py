"""One verdict on all photos of one car: what each shows, weighed by how much it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carspotter_check.photo_check import Answer, PhotoCheck, photos_in
from carspotter_check.rejection import apart, digits, pool


@dataclass(frozen=True)
class ListingAnswer:
    """What the check says of one car: a `verdict` as an Answer has it, for all photos together.

    `probability`: of the claimed class, or of `label` where none was claimed; None when no photo counted. `decided`
    names the photos that the verdict rests on, strongest first, `unusable` those that did not count.
    """

    verdict: str
    label: str | None
    probability: float | None
    decided: list[str]
    unusable: list[str]
    reason: str
    answers: list[Answer]

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}"


def combine(check: PhotoCheck, answers: Sequence[Answer], claim: str | None = None) -> ListingAnswer:
    """Combine the answers to photos of one car into one.

    Photos that show nothing, or nothing that the model knows, do not count: interiors and close-ups tell no model. The
    others are pooled by the model's `ListingRule`. If in the mean they are too unlike the known cars, the car is
    another model, or cannot be told.
    """
    unusable = [answer.photo for answer in answers if answer.verdict == "unusable"]
    few = f"{len(unusable)} of {len(answers)} photos unusable"

    def say(verdict: str, label: str | None, probability: float | None, decided: list[str], reason: str):
        return ListingAnswer(verdict, label, probability, decided, unusable, reason, [*answers])

    seen = [answer for answer in answers if answer.verdict != "unusable" and answer.probabilities]
    like = [answer for answer in seen if answer.decided_by != "likeness"]
    if not seen:
        return say("unusable", None, None, [], f"no photo shows a car from outside ({few})")
    mean = float(np.mean([answer.unlike or 0.0 for answer in seen]))
    if mean > check.listing.unlike or not like:
        others = sum(answer.verdict == "other_model" for answer in seen)
        verdict = "other_model" if 2 * others > len(seen) else "not_sure"
        decided = [answer.photo for answer in sorted(seen, key=lambda answer: -(answer.unlike or 0.0))]
        found, allowed = apart(100 * mean, 100 * check.listing.unlike, 0)
        reason = (
            f"together unlike the cars it knows (in the mean less like them than {found} % of good photos, "
            f"{allowed} % may be): another model, or no car ({few})"
        )
        return say(verdict, None, None, decided, reason)
    shares = np.array([list(answer.probabilities.values()) for answer in like])
    pooled = pool(shares, check.listing.correlation)
    best = int(pooled.argmax())
    label = check.class_names[best]
    order = np.argsort(-shares[:, best], kind="stable")
    decided = [like[number].photo for number in order if shares[number].argmax() == best]
    probability = round(float(pooled[check.class_names.index(claim)] if claim else pooled[best]), 6)
    words = f"{len(decided)} of {len(seen)} photos look like {label} (together p = {digits(pooled[best])}; {few})"
    if pooled[best] < check.listing.confidence:
        return say("not_sure", None, probability, decided, f"not sure enough: {words}")
    verdict = "named" if claim is None else "match" if claim == label else "other_model"
    claimed = f"claimed {claim}, but " if verdict == "other_model" else ""
    return say(verdict, label, probability, decided, claimed + words)


def mark_copies(check: PhotoCheck, answers: Sequence[Answer], contents: Sequence[bytes | str]) -> list[Answer]:
    """Return the answers, in which a photo that was there before is unusable: seen twice, it says nothing more.

    `contents`: the bytes of each photo, or what stands for them.
    """
    first: dict[bytes | str, Answer] = {}
    marked = []
    for answer, content in zip(answers, contents, strict=True):
        original = first.setdefault(content, answer)
        copy = original is not answer and original.verdict != "unusable"
        marked.append(check.unusable(f"the same photo as {original.photo}", answer.photo) if copy else answer)
    return marked


def read_listings(source: Path) -> list[tuple[str, list[Path], str | None]]:
    """Return name, photos and claim (None where none is made) of each car in a folder, or in a table.

    A folder of photos is one car; in a folder of folders, each folder is one car. A table, as any spreadsheet saves it
    as CSV, has the columns `listing`, `photo` (paths relative to it) and, if claims are made, `claim`. Raises
    FileNotFoundError and ValueError, naming the row.
    """
    from carspotter.photos.folders import is_system_name, read_rows  # with them comes pandas, which no server needs

    if source.is_dir():
        folders = sorted(path for path in source.iterdir() if path.is_dir() and not is_system_name(path.name))
        cars = [(folder.name, list(photos_in([folder])), None) for folder in folders or [source]]
        return [car for car in cars if car[1]]
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; name a folder of photos or a table")
    cars: dict[str, tuple[list[Path], str | None]] = {}
    for row in read_rows(source, ("listing", "photo"), ("claim",)):
        listing, photo, claim = row.values()
        if not listing or not photo:
            raise ValueError(f"{source}: a row has listing {listing!r} and photo {photo!r}; fill in both")
        path = source.parent / photo
        if not path.is_file():
            raise FileNotFoundError(f"{source}: {path} of listing {listing} does not exist; correct its row")
        photos, claimed = cars.setdefault(listing, ([], claim))
        if claim != claimed:
            raise ValueError(
                f"{source}: listing {listing} claims {claimed or 'nothing'} in one row and {claim or 'nothing'} in "
                "another; write the same claim in each"
            )
        photos.append(path)
    return [(name, *car) for name, car in cars.items()]
