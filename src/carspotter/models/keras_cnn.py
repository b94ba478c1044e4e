"""The CNNs of the series in Keras 3: a functional model, `compile`, `fit` and callbacks.

What to see here: a model is a graph of layers that carries its own preprocessing, and training is declared instead of
written. The same four names stand in torch_cnn.py and tensorflow_cnn.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported: no banner

import keras
import numpy as np
from keras import layers, ops
from keras.optimizers import schedules

from carspotter.models.experiments import Experiment, count_features, draw_epoch, schedule_steps
from carspotter.models.metrics import probabilities_from_logits

logging.getLogger("tensorflow").setLevel(logging.ERROR)  # a last, smaller batch makes it warn of retracing
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float64": "float64"}


def build_model(experiment: Experiment, classes: int) -> keras.Model:
    """Return a CNN: images (N, S, S, 3), 0 … 255, to logits, (N, 1) for two classes, (N, classes) for more.

    Its initial weights follow `keras.utils.set_random_seed`. Raises ValueError where `image_size` leaves nothing to
    flatten.
    """
    count_features(experiment)
    default = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[experiment.dtype])
    images = keras.Input((experiment.image_size, experiment.image_size, 3), name="images")
    x = layers.Rescaling(1 / 255)(images)
    for channels in experiment.conv_channels:
        x = layers.Conv2D(channels, 3, padding="same" if experiment.global_pooling else "valid")(x)
        x = activate(x, experiment)
        x = layers.MaxPooling2D()(x)
    x = layers.GlobalAveragePooling2D()(x) if experiment.global_pooling else layers.Flatten()(x)
    if experiment.dropout_rate:
        x = layers.Dropout(experiment.dropout_rate)(x)
    if experiment.dense_units:
        x = activate(layers.Dense(experiment.dense_units)(x), experiment)
    # The last sum is never rounded to bfloat16: probabilities near 0 and 1 would clump.
    dtype = keras.config.dtype_policy().variable_dtype
    logits = layers.Dense(1 if classes == 2 else classes, dtype=dtype, name="logits")(x)
    keras.config.set_dtype_policy(default)
    return keras.Model(images, logits, name=experiment.name)


def activate(x, experiment: Experiment):
    """Apply ReLU, with batch normalisation before or after it where the experiment asks for it."""
    if experiment.batch_norm == "before_relu":
        x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.ReLU()(x)
    if experiment.batch_norm == "after_relu":
        x = layers.BatchNormalization(momentum=0.9)(x)
    return x


class PhotoBatches(keras.utils.PyDataset):
    """Shuffled batches (images (B, S, S, 3), labels (B,)), augmented where the experiment says so.

    `images` is an array (N, S, S, 3), uint8, or maps of a frozen backbone, float; `labels` are class numbers (N,).
    Epoch after epoch the draws are those of `draw_epoch`, the same as in the other frameworks.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, experiment: Experiment, seed: int = 0):
        super().__init__()
        self.images, self.labels, self.experiment, self.seed = images, labels, experiment, seed
        self.next_epoch = 0
        self.draws = draw_epoch(experiment, seed, 0, len(images))

    def on_epoch_begin(self) -> None:
        self.draws = draw_epoch(self.experiment, self.seed, self.next_epoch, len(self.images))
        self.next_epoch += 1

    def __len__(self) -> int:
        return len(self.draws.photos)

    def __getitem__(self, step: int):
        photos, affine, colours = self.draws
        images = self.images[photos[step]]
        if affine is not None:
            images = transform(images, affine[step])
        if colours is not None:
            images = recolour(images, colours[step])
        return images, self.labels[photos[step]]


def transform(images: np.ndarray, affine: np.ndarray):
    """Return images (B, S, S, 3) changed by matrices (B, 3, 3): float32, bilinear; the border repeats its pixels."""
    numbers = affine.reshape(-1, 9)[:, :8]  # the ninth is 1
    return ops.image.affine_transform(ops.cast(images, "float32"), numbers, fill_mode="nearest")


def recolour(images, colours: np.ndarray):
    """Return images (B, S, S, 3), 0 … 255, with colours changed by matrices (B, 3, 4), clipped to 0 … 255."""
    changed = ops.einsum("bhwi,boi->bhwo", images, colours[:, :, :3]) + 255 * colours[:, None, None, :, 3]
    return ops.clip(changed, 0, 255)


def make_optimizer(experiment: Experiment, steps: int) -> keras.optimizers.Optimizer:
    """Return the experiment's optimizer for a training of `steps` steps."""
    rate = experiment.learning_rate
    if experiment.schedule == "warmup_cosine":
        rising, falling = schedule_steps(steps)
        rate = schedules.CosineDecay(rate / 25, falling, warmup_target=rate, warmup_steps=rising)
    if experiment.optimizer == "rmsprop":
        return keras.optimizers.RMSprop(rate)
    return keras.optimizers.Adam(rate)


def train(
    model: keras.Model,
    batches: PhotoBatches,
    experiment: Experiment,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    first_epoch: int = 0,
    callbacks: Iterable[keras.callbacks.Callback] = (),
) -> keras.callbacks.History:
    """Train the model up to `experiment.epochs`, going on from `first_epoch`; return Keras' History.

    `validation` are images and class numbers that are measured after each epoch.
    """
    if model.output_shape[-1] == 1:
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        accuracy = keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    model.compile(make_optimizer(experiment, experiment.epochs * len(batches)), loss, metrics=[accuracy])
    batches.next_epoch = first_epoch
    return model.fit(
        batches,
        validation_data=validation,
        initial_epoch=first_epoch,
        epochs=experiment.epochs,
        callbacks=list(callbacks),
        shuffle=False,  # `draw_epoch` did
        verbose=0,
    )


def predict(model: keras.Model, images: np.ndarray, experiment: Experiment) -> np.ndarray:
    """Return the class probabilities of images (N, S, S, 3), 0 … 255: float32 (N, classes)."""
    probabilities = probabilities_from_logits(model.predict(images, batch_size=100, verbose=0))
    if experiment.average_mirror_images:
        mirrored = probabilities_from_logits(model.predict(images[:, :, ::-1], batch_size=100, verbose=0))
        probabilities = (probabilities + mirrored) / 2
    return probabilities
