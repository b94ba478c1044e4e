"""Pictures of noise, a check with given answers, and a bundle whose model looks at a photo's mean colour."""

import io
import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from carspotter.photos.decoding import PREPROCESSING
from carspotter_check.bundle import write_manifest
from carspotter_check.photo_check import PhotoCheck
from carspotter_check.rejection import ListingRule, Rejection

SIZE = 32
NAMES = ["swift", "wagonr"]


def as_png(pixels):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def noise(seed=0, size=64, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (size, size, 3), dtype=np.uint8)


def make_check(probabilities=(0.1, 0.9), features=None, rejection=None, known=None):
    def predict(images):
        rows = np.tile(np.asarray(probabilities, np.float32), (len(images), 1))
        return rows, None if features is None else np.tile(np.asarray(features, np.float32), (len(images), 1))

    return PhotoCheck("a-run", "v1", NAMES, SIZE, predict, rejection or Rejection(confidence=0.6), known)


def write_colour_bundle(folder, size, weight, rejection, classes=("swift", "wagonr"), run="colours-by-hand"):
    """Write a bundle: features are the mean red, green and blue, 0 … 1; the logit is their product with `weight`."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto
    constants = [("weight", np.float32(weight).reshape(3, 1)), ("levels", np.float32(255))]
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=kind.FLOAT),
        helper.make_node("Div", ["pixels", "levels"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["features"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["features", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", kind.UINT8, ["N", size, size, 3])],
        [
            helper.make_tensor_value_info(name, kind.FLOAT, ["N", width])
            for name, width in (("logits", 1), ("features", 3))
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"classes": json.dumps(classes)})
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    listing = ListingRule(confidence=rejection.confidence)
    manifest = {"preprocessing": PREPROCESSING, "run": run, "classes": list(classes), "image_size": size}
    write_manifest(folder, manifest | {"format": "onnx", "rejection": asdict(rejection), "listing": asdict(listing)})
    return folder


def write_bundle(folder, change=None, weight=(25, 0, 0)):
    """A bundle; `change` alters its manifest after its files were hashed."""
    write_colour_bundle(folder, SIZE, weight, Rejection(), NAMES, "r")
    if change:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        changed = change(manifest)
        path.write_text(json.dumps(manifest if changed is None else changed))
    return folder
