"""The CNNs of the series in TensorFlow 2: Keras layers, a `tf.data` pipeline and a step with `tf.GradientTape`.

What to see here: the pipeline prepares batches beside the training, `@tf.function` turns the step into a graph, and
the tape remembers what the gradients need. The same four names stand in keras_cnn.py and torch_cnn.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported: no banner

import numpy as np
import tensorflow as tf

from carspotter.models.experiments import Experiment, count_features, draw_epoch, schedule_steps
from carspotter.models.metrics import accuracy, probabilities_from_logits

keras, layers = tf.keras, tf.keras.layers
tf.get_logger().setLevel("ERROR")  # a last, smaller batch makes it warn of retracing
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float64": "float64"}


def build_model(experiment: Experiment, classes: int) -> keras.Model:
    """Return a CNN: images (N, S, S, 3), 0 … 255, to logits, (N, 1) for two classes, (N, classes) for more.

    Its initial weights follow `keras.utils.set_random_seed`. Raises ValueError where `image_size` leaves nothing to
    flatten.
    """
    count_features(experiment)
    default = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[experiment.dtype])
    size, padding = experiment.image_size, "same" if experiment.global_pooling else "valid"
    stack = [keras.Input((size, size, 3), name="images"), layers.Rescaling(1 / 255)]
    for channels in experiment.conv_channels:
        stack += [layers.Conv2D(channels, 3, padding=padding), *activation(experiment), layers.MaxPooling2D()]
    stack += [layers.GlobalAveragePooling2D() if experiment.global_pooling else layers.Flatten()]
    stack += [layers.Dropout(experiment.dropout_rate)]
    if experiment.dense_units:
        stack += [layers.Dense(experiment.dense_units), *activation(experiment)]
    # The last sum is never rounded to bfloat16: probabilities near 0 and 1 would clump.
    dtype = keras.config.dtype_policy().variable_dtype
    stack += [layers.Dense(1 if classes == 2 else classes, dtype=dtype, name="logits")]
    model = keras.Sequential(stack, name=experiment.name)
    keras.config.set_dtype_policy(default)
    return model


def activation(experiment: Experiment) -> list[layers.Layer]:
    """Return ReLU, with batch normalisation before or after it where the experiment asks for it."""
    if experiment.batch_norm == "none":
        return [layers.ReLU()]
    stack = [layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    return stack if experiment.batch_norm == "before_relu" else stack[::-1]


class PhotoBatches:
    """Shuffled batches (images (B, S, S, 3), labels (B,)), augmented where the experiment says so.

    `images` is an array (N, S, S, 3), uint8, or maps of a frozen backbone, float; `labels` are class numbers (N,).
    Epoch after epoch the draws are those of `draw_epoch`, the same as in the other frameworks.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, experiment: Experiment, seed: int = 0):
        self.experiment, self.seed = experiment, seed
        with tf.device("CPU"):  # where tf.data works
            self.images, self.labels = tf.constant(images), tf.constant(labels)

    def __len__(self) -> int:
        return len(draw_epoch(self.experiment, self.seed, 0, len(self.images)).photos)

    def epoch(self, number: int) -> tf.data.Dataset:
        """Return the batches of an epoch, counted from 0."""
        draws = draw_epoch(self.experiment, self.seed, number, len(self.images))

        def load(step):
            photos = tf.gather(draws.photos, step)
            images = tf.gather(self.images, photos)
            if draws.affine is not None:
                images = transform(images, tf.gather(draws.affine, step))
            if draws.colours is not None:
                images = recolour(images, tf.gather(draws.colours, step))
            return images, tf.gather(self.labels, photos)

        return tf.data.Dataset.range(len(draws.photos)).map(load, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def transform(images: tf.Tensor, affine: tf.Tensor) -> tf.Tensor:
    """Return images (B, S, S, 3) changed by matrices (B, 3, 3): float32, bilinear; the border repeats its pixels."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=tf.reshape(affine, (-1, 9))[:, :8],  # the ninth is 1
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )


def recolour(images: tf.Tensor, colours: tf.Tensor) -> tf.Tensor:
    """Return images (B, S, S, 3), 0 … 255, with colours changed by matrices (B, 3, 4), clipped to 0 … 255."""
    changed = tf.einsum("bhwi,boi->bhwo", images, colours[:, :, :3]) + 255 * colours[:, None, None, :, 3]
    return tf.clip_by_value(changed, 0, 255)


def make_optimizer(experiment: Experiment, steps: int) -> keras.optimizers.Optimizer:
    """Return the experiment's optimizer for a training of `steps` steps."""
    rate = experiment.learning_rate
    if experiment.schedule == "warmup_cosine":
        rising, falling = schedule_steps(steps)
        rate = keras.optimizers.schedules.CosineDecay(rate / 25, falling, warmup_target=rate, warmup_steps=rising)
    if experiment.optimizer == "rmsprop":
        return keras.optimizers.RMSprop(rate)
    return keras.optimizers.Adam(rate)


def loss_and_hits(logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the mean cross-entropy of a batch, and the number of photos whose most probable class is their label."""
    if logits.shape[1] == 1:
        logits = logits[:, 0]
        losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(labels, logits.dtype), logits)
        predicted = tf.cast(logits > 0, labels.dtype)
    else:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        predicted = tf.argmax(logits, axis=1, output_type=labels.dtype)
    return tf.reduce_mean(losses), tf.math.count_nonzero(predicted == labels)


def make_step(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Callable:
    """Return one step of training: images (B, S, S, 3), labels (B,) → loss and hits of the batch."""

    @tf.function(reduce_retracing=True)
    def step(images, labels):
        with tf.GradientTape() as tape:
            loss, hits = loss_and_hits(model(images, training=True), labels)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss, hits

    return step


def train(
    model: keras.Model,
    batches: PhotoBatches,
    experiment: Experiment,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    first_epoch: int = 0,
    callbacks: Iterable = (),
) -> list[dict[str, float]]:
    """Train the model up to `experiment.epochs`, going on from `first_epoch`; return loss and accuracy of each epoch.

    `validation` are images and class numbers that are measured after each epoch. A callback has
    `on_train_begin(model, optimizer, schedule)` and `on_epoch_end(epoch, logs)`; the schedule is part of the optimizer
    here, so that None stands for it.
    """
    optimizer = make_optimizer(experiment, experiment.epochs * len(batches))
    optimizer.build(model.trainable_variables)
    for callback in callbacks:
        callback.on_train_begin(model, optimizer, None)
    step, history = make_step(model, optimizer), []
    for epoch in range(first_epoch, experiment.epochs):
        losses, hits, photos = 0.0, 0, 0
        for images, labels in batches.epoch(epoch):
            loss, right = step(images, labels)
            losses, hits, photos = losses + loss * len(labels), hits + right, photos + len(labels)
        logs = {"loss": float(losses) / photos, "accuracy": int(hits) / photos}
        if validation:
            logs["val_accuracy"] = accuracy(validation[1], predict(model, validation[0], experiment))
        for callback in callbacks:
            callback.on_epoch_end(epoch, logs)
        history.append(logs)
    return history


def predict(model: keras.Model, images: np.ndarray, experiment: Experiment) -> np.ndarray:
    """Return the class probabilities of images (N, S, S, 3), 0 … 255: float32 (N, classes)."""
    probabilities = probabilities_from_logits(model.predict(images, batch_size=100, verbose=0))
    if experiment.average_mirror_images:
        mirrored = probabilities_from_logits(model.predict(images[:, :, ::-1], batch_size=100, verbose=0))
        probabilities = (probabilities + mirrored) / 2
    return probabilities
