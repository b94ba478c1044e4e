"""What the review page asks and shows: a reviewer's queue of photos, worst first, and the decisions made on it."""

from __future__ import annotations

import functools
import io
import threading
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from carspotter.curation.curate import QUALITY
from carspotter.curation.reviews import REASONS, draw_audit, read_audit, read_reviews, standing_lines
from carspotter.paths import Study
from carspotter.photos.decoding import decode
from carspotter.photos.journal import append_line, read_journal
from carspotter.photos.table import read_curation, read_photos
from carspotter_review.quiz import draw_quiz, pair_reviewers, quiz_log, read_quiz

EDGES = {"thumb": 240, "large": 1600}  # longest side of a preview, pixels
# What the machine found, as a person would say it; the other kinds of its reasons say too little to suggest one.
SUGGESTED = dict.fromkeys((asked.kind for asked in QUALITY), "poor quality")
SUGGESTED["another model"] = "other model"
EXAMPLES = 24  # good photos per class from which those shown for comparison are drawn
PREVIEWS_KEPT = 500  # about 100 MB at most


class Session:
    """One reviewer's queue and decisions; all answers of the page come from here, as plain JSON values."""

    def __init__(self, study: Study, reviewer: str, quiz=None, audit=None, seed=0, features=None):
        if not reviewer.strip():
            raise ValueError("a reviewer needs a name: decisions are kept by name, and two reviewers are compared")
        self.study, self.reviewer, self.seed = study, reviewer.strip(), seed
        self.mode = "quiz" if quiz else "audit" if audit else "review"
        self.count = quiz or audit
        self.log, self.field = (quiz_log(study), "answer") if quiz else (study.reviews, "verdict")
        self.files = read_photos(study.data).set_index("sha256")
        curated = self._curated() if self.mode != "quiz" else None
        drawn = self._drawn(curated)
        self.classes = sorted({*drawn["label"], *([] if quiz else curated["label"])} - {""})
        self.photos = drawn.to_dict("records")
        self.row = {photo["sha256"]: number for number, photo in enumerate(self.photos)}
        asked = [photo for photo in self.photos if photo["asked"]]
        self.total = len(asked)
        columns = ("kind", "label") if self.mode == "review" else ()  # by which the page filters
        self.totals = {column: Counter(photo[column] for photo in asked) for column in columns}
        self.decided = self._standing()
        self.neighbours = _Neighbours(curated, features) if self.mode != "quiz" else None
        self.lock = threading.Lock()
        self.preview = functools.lru_cache(PREVIEWS_KEPT)(self._make_preview)

    def _curated(self) -> pd.DataFrame:
        """Join curation and files, worst first; what a person decided does not show, so that no other is swayed."""
        table = read_curation(self.study).sort_values(["score", "sha256"], ascending=[False, True])
        table = table[table["sha256"].isin(self.files.index)].reset_index(drop=True)
        by_machine = table["decided_by"] == "machine"
        reason = table["reason"].where(by_machine, "").str.partition(":")
        files = self.files.loc[table["sha256"]].reset_index()
        return table.assign(
            kind=reason[0].str.strip(),
            sentence=reason[2].str.strip(),
            kept=table["verdict"] == "keep",
            asked=(table["verdict"] == "keep") | ~by_machine,
            claim=files["label"].fillna(""),
            listing=[listings[0] if listings else "" for listings in files["listings"]],
            city=files["city"].fillna(""),
            size=[f"{width} × {height}" for width, height in zip(files["width"], files["height"], strict=True)],
        )

    def _drawn(self, curated: pd.DataFrame | None) -> pd.DataFrame:
        """Return the photos of this session in their order, each under the label that is in question."""
        if self.mode == "review":
            return curated.assign(label=curated["claim"])
        if self.mode == "quiz":
            drawn = draw_quiz(self.study, self.count, self.seed)
            return drawn[drawn["sha256"].isin(self.files.index)].assign(asked=True)
        drawn = draw_audit(self.study, self.count, self.seed)[["sha256"]].merge(curated, on="sha256")
        # An auditor who reads what the machine thinks no longer measures what the machine missed.
        return drawn.assign(kind="", sentence="", score=None, asked=True)

    def _standing(self) -> dict[str, dict]:
        lines = [line for line in read_journal(self.log) if line["reviewer"] == self.reviewer]
        if self.mode == "quiz":
            lines = [line for line in lines if (line["study"], line["seed"]) == (self.study.name, self.seed)]
        elif self.mode == "audit":
            lines = [line for line in lines if line.get("audit") == self.seed]
        return {sha256: line for (sha256, *_), line in standing_lines(lines, self.field).items()}

    def state(self) -> dict:
        """Say who reviews what, and how much is left, in all and per reason and class."""
        here = [self.photos[self.row[sha256]] for sha256 in list(self.decided) if sha256 in self.row]
        decided = [photo for photo in here if photo["asked"]]
        filters = {}
        for column, total in self.totals.items():
            done = Counter(photo[column] for photo in decided)
            filters[column] = [[value, count - done[value]] for value, count in total.most_common()]
        return {
            "mode": self.mode,
            "reviewer": self.reviewer,
            "classes": self.classes,
            "reasons": list(REASONS.items()),
            "total": self.total,
            "decided": len(decided),
            "filters": filters,
        }

    def list_photos(self, show: str = "left", kind: str | None = None, label: str | None = None) -> list[int]:
        """Return the numbers of the photos that pass the filters, worst first.

        `show`: left, decided, all, or machine: what the machine rejected by itself, which nobody is asked about.
        """
        return [
            number
            for number, photo in enumerate(self.photos)
            if photo["asked"] == (show != "machine")
            and (kind is None or photo.get("kind") == kind)
            and (label is None or photo["label"] == label)
            and (show in ("all", "machine") or (photo["sha256"] in self.decided) == (show == "decided"))
        ]

    def describe(self, number: int) -> dict:
        """Return all that the page shows about one photo."""
        photo = self.photos[number]
        about = {"number": number, "sha256": photo["sha256"], "decision": self.decided.get(photo["sha256"])}
        if self.mode == "quiz":
            return about
        about |= {name: photo[name] for name in ("label", "listing", "city", "size", "kind", "sentence", "score")}
        return about | {"suggested": SUGGESTED.get(photo["kind"], ""), "near": self.neighbours.of(photo["sha256"])}

    def decide(self, decision: dict) -> dict:
        """Write a decision to disk, then answer; raises ValueError for one that makes no sense."""
        sha256, label = decision.get("sha256"), decision.get("label")
        if not all(value is None or isinstance(value, str) for value in decision.values()):
            raise ValueError("a decision holds text only")
        if sha256 not in self.row:
            raise ValueError(f"{sha256!r} is not a photo of this queue")
        if self.mode == "quiz":
            line = {"sha256": sha256, "reviewer": self.reviewer, "answer": label, "study": self.study.name}
            line |= {"seed": self.seed, "count": self.count}
        else:
            verdict, reason = decision.get("verdict"), decision.get("reason")
            if verdict not in ("keep", "reject"):
                raise ValueError(f"verdict {verdict!r} is neither keep nor reject")
            if (verdict == "reject") != (reason in REASONS):
                raise ValueError(f"reason {reason!r} does not go with {verdict}; a reject takes one of {[*REASONS]}")
            line = {"sha256": sha256, "reviewer": self.reviewer, "verdict": verdict, "label": label, "reason": reason}
        if label not in self.classes:
            raise ValueError(f"label {label!r} is not one of {self.classes}")
        return self._write(line)

    def undo(self) -> dict:
        """Withdraw the last decision of this reviewer that stands, also one of an earlier session."""
        with self.lock:
            mine = [sha256 for sha256 in self.decided if sha256 in self.row]
            if not mine:
                return {"undone": None, "state": self.state()}
            line = self.decided[mine[-1]] | {self.field: None}
        line |= dict.fromkeys({"label", "reason"} & line.keys())
        return self._write(line) | {"undone": self.row[mine[-1]]}

    def _write(self, line: dict) -> dict:
        line |= {"time": datetime.now(UTC).isoformat(timespec="seconds")}
        if self.mode == "audit":
            line |= {"audit": self.seed}
        with self.lock:
            append_line(self.log, line)
            if line[self.field] is None:
                self.decided = self._standing()  # an earlier verdict may stand again
            else:
                self.decided.pop(line["sha256"], None)  # so that the latest one is the last one
                self.decided[line["sha256"]] = line
            return {"decision": self.decided.get(line["sha256"]), "state": self.state()}

    def summarize(self) -> dict:
        """Return figures (pairs of text) and sections of photos for the summary page."""
        if self.mode == "quiz":
            answers = read_quiz(self.study, self.reviewer)
            answers = answers[answers["seed"] == self.seed]
            wrong = answers[~answers["correct"]]
            captions = wrong["label"] + ", you said " + wrong["answer"]
            done = len(answers) == len(self.photos)  # before that a score would teach while it measures
            figures = [("answered", f"{len(answers)} of {len(self.photos)}")]
            figures += [("correct", f"{answers['correct'].mean():.1%}")] if done else []
            return {"figures": figures, "sections": [_section("mistakes", wrong["sha256"], captions)] if done else []}
        if self.mode == "audit":
            found = read_audit(self.study, self.count, self.seed)
            figures = [("looked at", f"{len(found.junk)} of {found.drawn}"), ("junk", str(found.junk.sum()))]
            return {"figures": [*figures, ("kept in all", f"{found.kept:,}")], "sections": []}
        reviews, figures, sections = read_reviews(self.study.data), [], []
        for reviewer, lines in reviews.groupby("reviewer"):
            rejected = lines[lines["verdict"] == "reject"].iloc[::-1]
            figures.append((reviewer, f"{len(lines):,} decided, {len(rejected):,} rejected"))
            title = f"Rejected by {reviewer}, the latest first"
            sections.append(_section(title, rejected["sha256"], rejected["reason"]))
        for first, second, both in pair_reviewers(self.study.data):
            same = both[first] == both[second]
            agreement = f"agree on {same.sum():,} of {len(both):,} photos"
            if both.stack().nunique() > 1:  # else chance alone would always agree
                agreement += f"; Cohen's kappa {cohen_kappa_score(both[first], both[second]):.2f}"
            figures.append((f"{first} and {second}", agreement))
            captions = f"{first}: " + both[first] + f" · {second}: " + both[second]
            compared = [
                _section(f"{first} and {second} disagree: {(~same).sum():,}", both.index[~same], captions[~same]),
                _section(f"{first} and {second} agree: {same.sum():,}", both.index[same], both.loc[same, first]),
            ]
            sections = compared + sections
        if len(figures) < 2:
            figures.append(("agreement", "needs a second reviewer: start the page under another name"))
        return {"figures": figures, "sections": [section for section in sections if section["photos"]]}

    def _make_preview(self, sha256: str, size: str) -> bytes:
        """Decode, turn upright, shrink: what is sent carries no EXIF and nothing that a decoder has not seen."""
        edge = EDGES[size]
        path = self.study.data / self.files.at[sha256, "path"]
        if path.is_symlink():
            raise FileNotFoundError(f"{path}: a link, not a stored photo; nothing outside the data folder is served")
        image, _ = decode(path, at_least=edge // 2, verify=False)  # a person sees what is missing
        image.thumbnail((edge, edge), Image.Resampling.BILINEAR)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=88 if size == "large" else 80)
        return stream.getvalue()


class _Neighbours:
    """Kept photos that help to decide on one: same listing, same duplicate cluster, nearest, good examples."""

    def __init__(self, photos: pd.DataFrame, features: pd.DataFrame | None):
        self.photos = photos.to_dict("records")
        self.row = {photo["sha256"]: number for number, photo in enumerate(self.photos)}
        self.listings, self.clusters = (
            photos[photos[column] != ""].groupby(column).groups for column in ("listing", "duplicate_cluster")
        )
        good = photos[photos["kept"] & (photos["kind"] == "")].iloc[::-1]
        self.good = {}
        for label, part in good.groupby("label"):
            best = part["sha256"].iloc[: max(EXAMPLES, len(part) // 4)]
            self.good[label] = best.sample(frac=1, random_state=0).tolist()[:EXAMPLES]
        self.features = None
        if features is not None:
            known = features.reindex(photos["sha256"]).to_numpy(dtype=np.float32)
            self.features = known / np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-12)
            usable = photos["kept"].to_numpy() & ~np.isnan(known).any(axis=1)
            self.kept = {
                label: (rows := np.flatnonzero(usable & (photos["label"] == label)), self.features[rows])
                for label in photos["label"].unique()
            }

    def of(self, sha256: str) -> list[dict]:
        """Return rows of photos, each with a title, the most telling first."""
        number = self.row[sha256]
        photo = self.photos[number]
        cluster, listing = photo["duplicate_cluster"], photo["listing"]
        rows = [("look the same", self.clusters.get(cluster, ())), ("same listing", self.listings.get(listing, ()))]
        if self.features is not None and not np.isnan(self.features[number]).any():
            kept, features = self.kept[photo["label"]]
            nearest = kept[np.argsort(-(features @ self.features[number]), kind="stable")]
            rows.append((f"nearest {photo['label']}", nearest[:5]))
        named = [
            {"title": title, "photos": [self.photos[n]["sha256"] for n in numbers if n != number][:4]}
            for title, numbers in rows
        ]
        # Its own class first: the question is whether it is one of these.
        rng = np.random.default_rng(number)
        for label in sorted(self.good, key=lambda label: (label != photo["label"], label))[:3]:
            others = [sha256 for sha256 in self.good[label] if sha256 != photo["sha256"]]
            named.append({"title": f"good {label}", "photos": [others[i] for i in rng.permutation(len(others))[:4]]})
        return [row for row in named if row["photos"]]


def _section(title: str, photos: Iterable[str], captions: Iterable[str]) -> dict:
    return {"title": title, "photos": [list(pair) for pair in zip(photos, captions, strict=True)][:60]}
