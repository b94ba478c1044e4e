"""Exported models: a sound one answers, a damaged one is refused with a sentence."""

import json

import numpy as np
import pytest

from carspotter_check.bundle import sha256_of
from carspotter_check.photo_check import PhotoCheck
from tests.check.toy import as_png, noise, write_bundle


def put(*path, value):
    def change(manifest):
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


def remove(key):
    return lambda manifest: manifest.pop(key) and None


FAULTS = {
    "no such version": (put("manifest_version", value=99), "version 99"),
    "version true": (put("manifest_version", value=True), "version True"),
    "a list": (lambda manifest: [], "no JSON object"),
    "no run": (remove("run"), "run is None"),
    "run with escapes": (put("run", value="a\x1b[31m\nforged"), "run is"),
    "no classes": (remove("classes"), "classes are None"),
    "one class": (put("classes", value=["a"]), "two or more names"),
    "equal classes": (put("classes", value=["a", "a"]), "two are equal"),
    "numbers as classes": (put("classes", value=[1, 2]), "two or more names"),
    "text as classes": (put("classes", value="ab"), "two or more names"),
    "three classes": (put("classes", value=["a", "b", "c"]), "other classes"),
    "swapped classes": (lambda manifest: manifest["classes"].reverse(), "other classes"),
    "image size 0": (put("image_size", value=0), "image_size is 0"),
    "image size as text": (put("image_size", value="32"), "image_size is '32'"),
    "another image size": (put("image_size", value=100), "takes images of 32 pixels"),
    "huge image size": (put("image_size", value=100_000), "image_size is 100000"),
    "no thresholds": (remove("rejection"), "rejection is missing"),
    "temperature 0": (put("rejection", "temperature", value=0), "temperature is 0"),
    "temperature -1": (put("rejection", "temperature", value=-1), "temperature is -1"),
    "temperature NaN": (put("rejection", "temperature", value=float("nan")), "temperature is nan"),
    "temperature endless": (put("rejection", "temperature", value=float("inf")), "temperature is inf"),
    "confidence as text": (put("rejection", "confidence", value="0.9"), "confidence is '0.9'"),
    "confidence NaN": (put("rejection", "confidence", value=float("nan")), "confidence is nan"),
    "confidence -1": (put("rejection", "confidence", value=-1), "confidence is -1"),
    "limit NaN": (put("rejection", "limits", "sharpness", value=float("nan")), "sharpness is nan"),
    "unknown threshold": (put("rejection", "x", value=1), "manifest.json cannot be used: unknown x"),
    "unknown limit": (put("rejection", "limits", "x", value=1), "unknown x"),
    "no rule for listings": (remove("listing"), "listing is missing"),
    "correlation 2": (put("listing", "correlation", value=2), "correlation is 2"),
    "correlation NaN": (put("listing", "correlation", value=float("nan")), "correlation is nan"),
    "files as a list": (put("files", value=["model.onnx"]), "files is no table"),
    "another file": (put("files", "model.onnx", value="0" * 64), "SHA-256 differs"),
    "outside": (put("files", "../secret", value="0" * 64), "outside the bundle"),
    "absolute": (put("files", "/etc/hosts", value="0" * 64), "outside the bundle"),
    "a file's name with escapes": (put("files", "a\x1b[31m", value="0" * 64), "files is no table"),
    "missing file": (put("files", "gone.onnx", value="0" * 64), "gone.onnx is missing"),
    "another format": (lambda m: m.update(files={}, format="keras"), "holds keras"),
    "another preprocessing": (put("preprocessing", value="other-9"), "made for the preprocessing other-9"),
    "no preprocessing": (remove("preprocessing"), "preprocessing is None"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_bundle_is_refused_with_one_sentence(tmp_path, fault):
    change, words = FAULTS[fault]
    with pytest.raises((ValueError, FileNotFoundError), match=words) as refusal:
        PhotoCheck.load(write_bundle(tmp_path / "bundle", change))
    assert "\n" not in str(refusal.value) and "\x1b" not in str(refusal.value)


def test_weights_outside_the_model_are_not_loaded_since_nothing_vouches_for_them(tmp_path):
    import onnx

    folder = write_bundle(tmp_path / "bundle")
    model = onnx.load(folder / "model.onnx")
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    assert (folder / "weights.bin").stat().st_size > 0
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {"model.onnx": sha256_of(folder / "model.onnx")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="not a model that ONNX Runtime can load"):
        PhotoCheck.load(folder)


def test_a_sound_bundle_is_loaded_and_answers(tmp_path):
    answer = PhotoCheck.load(write_bundle(tmp_path / "bundle")).check(as_png(noise()), "wagonr")
    assert answer.verdict == "match" and answer.run == "r"


def test_a_model_that_computes_nan_is_refused_before_it_is_used(tmp_path):
    with pytest.raises(ValueError, match="computes no number"):
        PhotoCheck.load(write_bundle(tmp_path / "bundle", weight=(np.nan, 0, 0)))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\0", b"[" * 100_000, b"x" * 2_000_000])
def test_a_manifest_that_is_no_json_is_refused(tmp_path, content):
    folder = write_bundle(tmp_path / "bundle")
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be used"):
        PhotoCheck.load(folder)


def test_a_bundle_that_is_not_there_is_refused_with_advice(tmp_path):
    with pytest.raises(FileNotFoundError, match="export RUN --to onnx"):
        PhotoCheck.load(tmp_path)
