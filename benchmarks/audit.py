"""`carspotter audit` beside cleanvision and cleanlab: processor seconds, and how much of the known junk each finds.

    python benchmarks/audit.py REAL_PHOTOS --rivals PYTHON --weights FILE [--seed 10]

REAL_PHOTOS holds two class folders and the folders `other-model` and `unusable`, whose photos are put into one of the
classes at random, by seed. 30 photos are cut off in the middle (every other one with an end marker appended), of 30 a
smaller copy is added. A contestant names damaged files, pairs of copies, and ranks the rest; junk counts as found among
the first fifth of the ranking. PYTHON is that of an environment with cleanvision and cleanlab. cleanlab is given
MobileNetV2's features, as the audit makes them, and out-of-fold probabilities of a logistic regression on them, as its
documentation has it; half of its fifth are the worst labels, half the worst outliers. The audit runs with and without
the weights. Each runs on one thread in a process of its own; features are a contestant's cost too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

JUNK = ("other-model", "unusable")
PLANTED, BUDGET = 30, 0.2
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "TF_NUM_INTRAOP", "MKL")}
ONE_THREAD |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rivals", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=10)
    options = parser.parse_args()
    from machine import describe  # noqa: PLC0415 - the rivals' Python runs this file too

    print(describe("numpy", "scikit-learn", "pillow"))
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        truth = plant(options.photos, work / "photos", options.seed)
        print(f"{len(truth)} files: {truth['what'].value_counts().to_dict()}, seed {options.seed}", flush=True)
        features = work / "features.npy"
        jobs = {
            "audit": (sys.executable, "audit"),
            "audit --weights": (sys.executable, "audit", options.weights),
            "(features)": (sys.executable, "features", options.weights, features),
            "cleanvision": (options.rivals, "cleanvision"),
            "cleanlab": (options.rivals, "cleanlab", features),
        }
        rows = {}
        for name, (python, contestant, *arguments) in jobs.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            answer = run(python, contestant, work / "photos", *arguments)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            rows[name] = {"cpu_seconds": round(seconds, 1)} | score(answer, truth)
            print(name, rows[name], flush=True)
        rows["cleanlab"]["cpu_seconds"] += rows.pop("(features)")["cpu_seconds"]
        print(pd.DataFrame(rows).T.to_string())


def run(python: Path | str, *arguments: object) -> dict:
    command = [str(python), __file__, "--contestant", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def plant(photos: Path, folder: Path, seed: int) -> pd.DataFrame:
    """Lay out the photos with junk among the classes; return file, what (good, junk, damaged, copy) and origin."""
    rng = np.random.default_rng(seed)
    classes = sorted(path.name for path in photos.iterdir() if path.is_dir() and path.name not in JUNK)
    rows = []
    for path in sorted(photos.glob("*/*")):
        junk = path.parent.name in JUNK
        label = rng.choice(classes) if junk else path.parent.name
        rows.append({"file": f"{label}/{path.name}", "what": "junk" if junk else "good", "origin": path})
    good = [row for row in rows if row["what"] == "good"]
    chosen = [good[place] for place in rng.permutation(len(good))[: 2 * PLANTED]]
    for row in rows:
        (folder / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / row["file"]).write_bytes(row["origin"].read_bytes())
        row["origin"] = ""
    for number, row in enumerate(chosen):
        content = (folder / row["file"]).read_bytes()
        if number < PLANTED:
            row["what"] = "damaged"
            end = b"\xff\xd9" if number % 2 else b""
            (folder / row["file"]).write_bytes(content[: len(content) // 2] + end)
        else:
            copy = row["file"].replace(".", "_copy.")
            image = Image.open(io.BytesIO(content)).convert("RGB")
            image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(folder / copy, quality=75)
            rows.append({"file": copy, "what": "copy", "origin": row["file"]})
    return pd.DataFrame(rows)


def score(answer: dict, truth: pd.DataFrame) -> dict[str, float]:
    """Return recalls: of damaged files, planted copies, and junk in the first fifth of the ranking."""
    of = {what: set(truth.loc[truth["what"] == what, "file"]) for what in ("junk", "damaged")}
    copies = {frozenset(pair) for pair in truth.loc[truth["what"] == "copy", ["file", "origin"]].to_numpy()}
    found = {frozenset(pair) for pair in answer.get("copies", [])}
    first = set(answer.get("ranking", [])[: round(BUDGET * len(truth))])
    return {
        "damaged": len(of["damaged"] & set(answer.get("damaged", []))) / PLANTED,
        "copies": len(copies & found) / len(copies),
        "junk in the worst fifth": round(len(of["junk"] & first) / len(of["junk"]), 3),
    }


def audit(folder: Path, weights: Path | None = None) -> dict:
    from carspotter.curation.audit import audit_folder  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as out:
        findings = audit_folder(folder, Path(out), weights, listing_from="none", show_progress=False).findings
    doubts = findings[findings["kind"].isin(("label", "junk", "poor"))].sort_values("score", ascending=False)
    copies = findings[findings["kind"] == "copy"]
    return {
        "damaged": findings.loc[findings["kind"] == "unreadable", "file"].tolist(),
        "copies": copies[["file", "other"]].to_numpy().tolist(),
        "ranking": doubts["file"].tolist(),
    }


def features(folder: Path, weights: Path, out: Path) -> dict:
    """Write features of all photos that can be decoded, and their names beside them."""
    from carspotter.models.transfer import extract_features  # noqa: PLC0415
    from carspotter.photos.images import decode_image  # noqa: PLC0415

    files = [file for file in sorted(folder.glob("*/*")) if _opens(file)]
    images = np.stack([decode_image(file, 224, verify=False) for file in files])
    np.save(out, extract_features(images, weights, show_progress=False))
    names = [file.relative_to(folder).as_posix() for file in files]
    Path(out).with_suffix(".json").write_text(json.dumps(names))
    return {}


def cleanvision(folder: Path) -> dict:
    from cleanvision import Imagelab  # noqa: PLC0415

    files = [file for file in sorted(folder.glob("*/*")) if _opens(file)]  # it stops at the others
    lab = Imagelab(filepaths=list(map(str, files)), verbose=False)
    lab.find_issues(n_jobs=1, verbose=False)
    issues = lab.issues
    scores = issues[[name for name in issues if name.endswith("_score") and "duplicates" not in name]].min(axis=1)
    sets = [*lab.info["near_duplicates"]["sets"], *lab.info["exact_duplicates"]["sets"]]
    name = {str(file): file.relative_to(folder).as_posix() for file in files}
    return {
        "copies": [[name[first], name[second]] for group in sets for first in group for second in group],
        "ranking": [name[file] for file in scores.sort_values().index],
    }


def cleanlab(folder: Path, features: Path) -> dict:
    from cleanlab.outlier import OutOfDistribution  # noqa: PLC0415
    from cleanlab.rank import get_label_quality_scores  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.model_selection import cross_val_predict  # noqa: PLC0415

    names = json.loads(Path(features).with_suffix(".json").read_text())
    table = np.load(features)
    labels = np.unique([name.split("/")[0] for name in names], return_inverse=True)[1]
    model = LogisticRegression(max_iter=1000)
    probabilities = cross_val_predict(model, table, labels, cv=5, method="predict_proba")
    quality = get_label_quality_scores(labels, probabilities)
    outliers = OutOfDistribution().fit_score(features=table, verbose=False)
    # In turn: the worst label, the worst outlier, the second worst label …
    turns = np.minimum(2 * quality.argsort().argsort(), 2 * np.asarray(outliers).argsort().argsort() + 1)
    return {"ranking": [names[place] for place in turns.argsort(kind="stable")]}


def _opens(file: Path) -> bool:
    try:
        Image.open(file).load()
        return True
    except OSError:
        return False


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        contestants = {"audit": audit, "features": features, "cleanvision": cleanvision, "cleanlab": cleanlab}
        print(json.dumps(contestants[sys.argv[2]](*map(Path, sys.argv[3:]))))
    else:
        main()
