"""VGG16 and MobileNetV2 in Keras, from `keras.applications`, with the head of the series; TensorFlow uses it too.

What to see here: a pretrained network can be cut at any layer. What stands before the first layer that learns is one
model, what learns is another, and both share their weights with the whole.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported: no banner

import keras
import numpy as np
from keras import layers

from carspotter.models.experiments import BLOCKS, Experiment
from carspotter.models.keras_cnn import POLICIES, recolour, transform

# MobileNetV2's last maps at a quarter, an eighth, a sixteenth and a thirty-second of the image's side.
LEVELS = ("block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu", "out_relu")


def build_model(experiment: Experiment, classes: int) -> keras.Model:
    """Return a backbone with a head: images (N, S, S, 3), 0 … 255, to logits, (N, 1) or (N, classes) from three on.

    All weights are random; `load_backbone` brings the backbone's. Its blocks but the last `tuned_blocks` are frozen.
    """
    default = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[experiment.dtype])
    images = keras.Input((experiment.image_size, experiment.image_size, 3), name="images")
    if experiment.backbone == "vgg16":
        x = keras.applications.vgg16.preprocess_input(images)
        backbone = keras.applications.VGG16(include_top=False, weights=None, input_tensor=x)
    else:
        # In float32 whatever the dtype: on a CPU its narrow convolutions are no quicker in bfloat16.
        keras.config.set_dtype_policy("float64" if experiment.dtype == "float64" else "float32")
        x = layers.Rescaling(1 / 127.5, -1)(images)
        width = experiment.backbone_width
        backbone = keras.applications.MobileNetV2(alpha=width, include_top=False, weights=None, input_tensor=x)
        keras.config.set_dtype_policy(POLICIES[experiment.dtype])
    learning = False
    for layer in backbone.layers:
        learning = learning or layer.name == first_learning_layer(experiment)
        # Batch norm stays in evaluation mode: in some files it is folded into the convolutions.
        layer.trainable = learning and not isinstance(layer, layers.BatchNormalization)
    levels = LEVELS if experiment.pooling == "levels" else (backbone.layers[-1].name,)
    pools = [layers.GlobalAveragePooling2D]
    if experiment.pooling != "mean":
        pools += [layers.GlobalMaxPooling2D]
    pooled = [pool(keepdims=True)(backbone.get_layer(level).output) for level in levels for pool in pools]
    x = layers.Concatenate(name="features")(pooled) if len(pooled) > 1 else layers.Identity(name="features")(pooled[0])
    if experiment.pooling != "mean":  # a mean over many cells is small, a maximum large
        x = layers.BatchNormalization(momentum=0.9, center=False, scale=False)(x)
    x = layers.Dropout(experiment.dropout_rate)(layers.Flatten()(x))
    if experiment.dense_units:
        x = layers.Dense(experiment.dense_units, activation="relu")(x)
    # The last sum is never rounded to bfloat16: probabilities near 0 and 1 would clump.
    dtype = keras.config.dtype_policy().variable_dtype
    logits = layers.Dense(1 if classes == 2 else classes, dtype=dtype, name="logits")(x)
    keras.config.set_dtype_policy(default)
    return keras.Model(images, logits, name=experiment.name)


def first_learning_layer(experiment: Experiment) -> str | None:
    """Return the name of the backbone's first layer that learns, None where it is frozen."""
    if not experiment.tuned_blocks:
        return None
    block = BLOCKS[experiment.backbone] - experiment.tuned_blocks + 1
    return f"block{block}_conv1" if experiment.backbone == "vgg16" else f"block_{block}_expand"


def load_backbone(model: keras.Model, path: Path, experiment: Experiment) -> None:
    """Load a backbone's weights, a Keras file without the top; raises ValueError where they do not fit."""
    if experiment.backbone == "vgg16":
        source = keras.applications.VGG16(include_top=False, weights=None)
    else:
        source = keras.applications.MobileNetV2(
            (None, None, 3), alpha=experiment.backbone_width, include_top=False, weights=None
        )
    try:
        source.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(
            f"{path}: not weights of {experiment.backbone} (width {experiment.backbone_width}) without the top: {error}"
        ) from error
    for layer in source.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())


def split_model(model: keras.Model, experiment: Experiment) -> tuple[keras.Model, keras.Model]:
    """Return the frozen part of a model, images to maps, and the part that learns, maps to logits."""
    first = first_learning_layer(experiment)
    maps = model.get_layer(first).input if first else model.get_layer("features").output
    return keras.Model(model.input, maps), keras.Model(maps, model.output, name=f"{experiment.name}_head")


def compute_maps(
    frozen: keras.Model, images: np.ndarray, affine: np.ndarray | None = None, colours: np.ndarray | None = None
) -> np.ndarray:
    """Return the frozen part's maps of images uint8 (B, S, S, 3), augmented as in training: float32 (B, h, w, C)."""
    if affine is not None:
        images = transform(images, affine)
    if colours is not None:
        images = recolour(images, colours)
    return np.asarray(frozen.predict_on_batch(images)).astype(np.float32)
