"""The experiments in TensorFlow 2 itself: `tf.data`, `tf.function`, `GradientTape`, a `tf.distribute` strategy.

What to see here: the model is a `tf.Module` of variables and plain operations, a step is traced once into a graph, and
the same step runs on one device or on several, each with its part of the batch; with TF_CONFIG also in several
processes (workers.py). No Keras. Siblings: keras_models.py, torch_models.py.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported: its banner is not ours

import numpy as np
import tensorflow as tf

from carspotter.models.experiments import (
    CAFFE_MEANS,
    Experiment,
    convolutions,
    draw_colours,
    draw_epoch,
    feature_count,
    learning_rates,
)
from carspotter.models.metrics import probabilities_from_logits
from carspotter.models.weights import read_vgg16
from carspotter.models.workers import this_worker

CHECKPOINT = "checkpoint{}.npz"
RESUME = "resume.npz"
logging.getLogger("tensorflow").setLevel(logging.ERROR)

# In place of a gradient's mean over replicas each variable takes the same step everywhere.
ON_EVERY_REPLICA = {"aggregation": tf.VariableAggregation.MEAN, "synchronization": tf.VariableSynchronization.ON_WRITE}


class PhotoDataset:
    """Batches in the order of `draw_epoch`, as a `tf.data.Dataset`: images, changes, labels.

    The photos are gathered from the memory-mapped array batch by batch, a few batches ahead of the step. Features
    (N, F) in place of images are given as they are. Where several processes train together, each has every so many'th
    photo of a batch, which may be none of the last.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, experiment: Experiment, seed: int, training: bool):
        self.images, self.labels, self.experiment, self.seed, self.training = images, labels, experiment, seed, training

    def batches(self, epoch: int) -> tf.data.Dataset:
        """Give one epoch of (images uint8 (B, S, S, 3), changes float32 (B, 8 or 20), labels int64 (B,)).

        Eight numbers name an affine change to TensorFlow; twelve more a change of colours, where there is one.
        """
        count, size = self.images.shape[:2]
        order, matrices, colours = np.arange(count), None, None
        if self.training:
            order, matrices = draw_epoch(self.experiment, self.seed, epoch, count, size)
            colours = draw_colours(self.experiment, self.seed, epoch, count)
        matrices = np.tile(np.eye(3), (count, 1, 1)) if matrices is None else matrices
        changes = [matrices.reshape(-1, 9)[:, :8]] + ([] if colours is None else [colours.reshape(-1, 12)])
        changes = np.concatenate(changes, axis=1, dtype=np.float32)

        def gather(photos):
            dtype = tf.as_dtype(self.images.dtype)
            images = tf.numpy_function(lambda photos: self.images[photos], [photos], dtype, stateful=False)
            return tf.ensure_shape(images, (None, *self.images.shape[1:]))

        dataset = tf.data.Dataset.from_tensor_slices((order, changes, self.labels[order].astype(np.int64)))
        dataset = dataset.batch(self.experiment.batch_size)
        if self.training and (worker := this_worker("tensorflow")).count > 1:
            dataset = dataset.map(lambda *batch: tuple(part[worker.number :: worker.count] for part in batch))
        dataset = dataset.map(lambda photos, changes, labels: (gather(photos), changes, labels))
        return dataset.prefetch(tf.data.AUTOTUNE)


# XLA on a GPU wants parts of CUDA that not every installation has; there the operations run one by one.
@tf.function(jit_compile=not tf.config.list_physical_devices("GPU"))
def warp(images: tf.Tensor, changes: tf.Tensor) -> tf.Tensor:
    """Apply one change per photo, float32 (B, 8 or 20), to a batch: float32.

    Affine: bilinear; the nearest border pixel repeats. Then one of colours, where there are twelve more numbers,
    (3, 4), for values 0 … 1. XLA makes one loop of all this: on a CPU several times as fast as TensorFlow's own
    `ImageProjectiveTransformV3`, which finds its way anew for each channel.
    """
    shape = tf.shape(images)
    count, size = shape[0], shape[1]
    pixel = tf.range(size, dtype=tf.float32)
    across, down, start = tf.unstack(tf.reshape(changes[:, :6], (count, 2, 3, 1, 1)), axis=2)
    place = across * pixel + down * pixel[:, None] + start  # x and y in the photo, for each pixel of the new one
    place = tf.clip_by_value(place, 0, tf.cast(size - 1, tf.float32))  # repeats the border
    corner = tf.minimum(tf.floor(place), tf.cast(size - 2, tf.float32))  # at the last pixel the share is 1
    share = (place - corner)[..., None]
    corner = tf.cast(corner, tf.int32)
    upper_left = (tf.range(count)[:, None, None] * size + corner[:, 1]) * size + corner[:, 0]
    pixels = tf.reshape(images, (count * size * size, 3))

    def row(step: int | tf.Tensor) -> tf.Tensor:
        left, right = (tf.cast(tf.gather(pixels, upper_left + step + side), tf.float32) for side in (0, 1))
        return left * (1 - share[:, 0]) + right * share[:, 0]

    warped = row(0) * (1 - share[:, 1]) + row(size) * share[:, 1]
    if changes.shape[1] == 8:
        return warped
    colours = tf.transpose(tf.reshape(changes[:, 8:], (-1, 3, 4)), (0, 2, 1))
    changed = tf.reshape(warped, (count, size * size, 3)) @ colours[:, :3] + 255 * colours[:, 3:]
    return tf.reshape(tf.clip_by_value(changed, 0, 255), shape)


class CarModel(tf.Module):
    """Convolution blocks, a dense layer, logits; takes pixels 0 … 255, or the features of a frozen backbone.

    `weights` are in the order of the layers.
    """

    def __init__(self, experiment: Experiment, classes: int, image_size: int, seed: int):
        super().__init__(name=experiment.name)
        self.experiment, self.image_size = experiment, image_size
        self.dtype = tf.float64 if experiment.dtype == "float64" else tf.float32
        self.random = tf.random.Generator.from_seed(seed)
        features, built = feature_count(experiment, image_size), convolutions(experiment)
        self.feature_count = features
        inputs = (3, *(convolution.channels for convolution in built))
        self.pooled = [convolution.pooled for convolution in built]
        self.blocks = [
            self._layer(number, (3, 3, inputs[number], channels), learns=learns)
            for number, (channels, _, learns) in enumerate(built)
        ]
        self.dense = self._layer(len(built), (features, experiment.dense_units)) if experiment.dense_units else {}
        outputs = 1 if classes == 2 else classes
        self.logits = self._layer(len(built) + 1, (experiment.dense_units or features, outputs), norm=False)

    @tf.Module.with_name_scope
    def __call__(self, images: tf.Tensor, training: bool = False, dropout_seed: tf.Tensor | None = None) -> tf.Tensor:
        compute = tf.bfloat16 if self.experiment.dtype == "bfloat16" else self.dtype
        x = self.features(images, training) if len(images.shape) == 4 else tf.cast(images, compute)
        if training and self.experiment.dropout_rate:
            x = tf.nn.experimental.stateless_dropout(x, self.experiment.dropout_rate, seed=dropout_seed)
        if self.dense:
            x = tf.matmul(x, tf.cast(self.dense["kernel"], compute)) + tf.cast(self.dense["bias"], compute)
            x = self._activate(x, self.dense, training)
        # The last sum is not rounded to bfloat16: probabilities near 0 and 1 would clump.
        return tf.matmul(tf.cast(x, self.dtype), self.logits["kernel"]) + self.logits["bias"]

    def features(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Give what the head sees of images (B, S, S, 3): (B, features)."""
        compute = tf.bfloat16 if self.experiment.dtype == "bfloat16" else self.dtype
        x = tf.cast(images, self.dtype)
        x = tf.cast(x[..., ::-1] - CAFFE_MEANS if self.experiment.backbone else x / 255, compute)
        mirrored = self.experiment.mirrored and not training
        x = tf.concat([x, tf.reverse(x, axis=[2])], axis=0) if mirrored else x
        for layer, pooled in zip(self.blocks, self.pooled, strict=True):
            padding = "SAME" if self.experiment.any_size else "VALID"
            x = tf.nn.conv2d(x, tf.cast(layer["kernel"], compute), strides=1, padding=padding)
            x = self._activate(tf.nn.bias_add(x, tf.cast(layer["bias"], compute)), layer, training)
            x = tf.nn.max_pool2d(x, 2, strides=2, padding="VALID") if pooled else x
        x = tf.reduce_mean(x, axis=(1, 2)) if self.experiment.any_size else tf.reshape(x, (-1, self.feature_count))
        return sum(tf.split(x, 2)) / 2 if mirrored else x

    @property
    def weights(self) -> list[tf.Variable]:
        layers = [*self.blocks, self.dense, self.logits]
        return [layer[name] for layer in layers for name in layer]

    def _layer(
        self, number: int, shape: tuple[int, ...], norm: bool = True, learns: bool = True
    ) -> dict[str, tf.Variable]:
        # Glorot & Bengio 2010, uniform; a convolution's fans count its 3×3 window.
        window = int(np.prod(shape[:-2]))
        limit = (6 / (window * (shape[-2] + shape[-1]))) ** 0.5

        def variable(value, name, trainable=True):
            return tf.Variable(tf.cast(value, self.dtype), trainable=trainable, name=name, **ON_EVERY_REPLICA)

        layer = {
            "kernel": variable(self.random.uniform(shape, -limit, limit), f"kernel_{number}", learns),
            "bias": variable(tf.zeros(shape[-1]), f"bias_{number}", learns),
        }
        if norm and self.experiment.batch_norm != "none":
            layer |= {
                "scale": variable(tf.ones(shape[-1]), f"scale_{number}"),
                "shift": variable(tf.zeros(shape[-1]), f"shift_{number}"),
                "mean": variable(tf.zeros(shape[-1]), f"mean_{number}", trainable=False),
                "variance": variable(tf.ones(shape[-1]), f"variance_{number}", trainable=False),
            }
        return layer

    def _activate(self, x: tf.Tensor, layer: dict[str, tf.Variable], training: bool) -> tf.Tensor:
        if self.experiment.batch_norm == "before_relu":
            x = self._normalise(x, layer, training)
        x = tf.nn.relu(x)
        return self._normalise(x, layer, training) if self.experiment.batch_norm == "after_relu" else x

    def _normalise(self, x: tf.Tensor, layer: dict[str, tf.Variable], training: bool) -> tf.Tensor:
        """Batch normalisation over all axes but the channels, Ioffe & Szegedy 2015; momentum .9, ε 1e-3."""
        mean, variance = layer["mean"], layer["variance"]
        if training:
            # bfloat16 has too few digits for a variance.
            mean, variance = tf.nn.moments(tf.cast(x, self.dtype), axes=list(range(x.shape.rank - 1)))
            if tf.distribute.get_replica_context().num_replicas_in_sync > 1:  # one may have none of the last batch
                some = tf.size(x) > 0
                mean, variance = tf.where(some, mean, layer["mean"]), tf.where(some, variance, layer["variance"])
            for running, batch in ((layer["mean"], mean), (layer["variance"], variance)):
                running.assign(running * 0.9 + batch * 0.1)
        scale = layer["scale"] * tf.math.rsqrt(variance + 1e-3)
        return x * tf.cast(scale, x.dtype) + tf.cast(layer["shift"] - mean * scale, x.dtype)


def make_dataset(
    images: np.ndarray, labels: np.ndarray, experiment: Experiment, seed: int = 0, training: bool = True
) -> PhotoDataset:
    """Make batches of images uint8 (N, S, S, 3) and class numbers (N,).

    Training batches are shuffled and, where the experiment says so, augmented; others keep the order and the pixels.
    """
    return PhotoDataset(images, labels, experiment, seed, training)


def build_model(
    experiment: Experiment, classes: int, image_size: int, seed: int = 0, weights: Path | None = None
) -> CarModel:
    """Build the model: images (N, S, S, 3), 0 … 255 → logits, (N, 1) for two classes, (N, classes) for more.

    Fresh weights are a function of `seed`; `weights` names a checkpoint to load instead. With several GPUs the
    variables are mirrored on all of them. A backbone's weights are brought by `load_backbone`. Raises ValueError when
    the images are too small for the blocks.
    """
    strategy = tf.distribute.get_strategy()
    if this_worker("tensorflow").count > 1:
        strategy = _join()
    elif not tf.distribute.has_strategy() and len(tf.config.list_logical_devices("GPU")) > 1:
        strategy = tf.distribute.MirroredStrategy()
    with _scope(strategy):
        model = CarModel(experiment, classes, image_size, seed)
    model.strategy = strategy
    if weights:
        _load(weights, model.weights)
    # Predicting is traced once for batches of any size.
    signature = tf.TensorSpec((None, image_size, image_size, 3), tf.uint8, name="images")
    model.predict = tf.function(model.__call__, input_signature=[signature])
    return model


@functools.cache
def _join() -> tf.distribute.Strategy:
    """Meet the other processes that TF_CONFIG names; it has to be before TensorFlow computes anything."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    if strategy.num_replicas_in_sync > this_worker("tensorflow").count:
        raise ValueError("TF_CONFIG: each process takes one GPU; name it in its CUDA_VISIBLE_DEVICES")
    # TensorFlow has set itself to note the signal and to go on: who ends a process means it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return strategy


def _scope(strategy: tf.distribute.Strategy) -> contextlib.AbstractContextManager:
    """Where variables are made: on all devices of a process; over the net each assignment would ask everybody."""
    over_the_net = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return contextlib.nullcontext() if over_the_net else strategy.scope()


def load_backbone(model: CarModel, path: Path) -> None:
    """Load VGG16's weights, a Keras file without the top, into a model; raises ValueError where they do not fit."""
    variables = [layer[name] for layer in model.blocks for name in ("kernel", "bias")]
    for variable, array in zip(variables, read_vgg16(path, [tuple(v.shape) for v in variables]), strict=True):
        variable.assign(array)


def compute_features(model: CarModel, images: np.ndarray, batch_size: int = 50) -> np.ndarray:
    """Give what a model's head sees of images uint8 (N, S, S, 3): float32 (N, features)."""
    features = tf.function(model.features, reduce_retracing=True)
    starts = range(0, len(images), batch_size)
    found = [tf.cast(features(tf.constant(images[start : start + batch_size])), tf.float32) for start in starts]
    return np.concatenate([batch.numpy() for batch in found])


def train(
    model: CarModel,
    dataset: PhotoDataset,
    validation_images: np.ndarray,
    epochs: int,
    folder: Path,
    on_epoch: Callable[[int, float, float, np.ndarray], bool],
    on_batch: Callable[[int], None] = lambda photos: None,
) -> None:
    """Train up to epoch `epochs`, going on from `folder/resume.npz` where a killed run left one.

    After each epoch: `on_epoch(epoch, training loss, training accuracy, validation probabilities)`; when it answers
    True, the weights are kept as the checkpoint of that epoch. The training figures are running means over the epoch,
    augmentation and dropout included. `on_batch(photos)` reports progress. Where the backbone is frozen, the dataset
    and `validation_images` hold features instead of images. Of several processes the first calls `on_epoch` and saves.
    """
    with _scope(model.strategy):
        steps = epochs * -(-len(dataset.images) // dataset.experiment.batch_size)
        optimizer = make_optimizer(model, dataset.experiment, steps)
    finished = 0
    if (folder / RESUME).exists():
        finished = _load(folder / RESUME, [*model.weights, *optimizer.state])
    step = make_step(model, optimizer, dataset.experiment)

    count, worker = len(dataset.images), this_worker("tensorflow")
    for epoch in range(finished + 1, epochs + 1):
        total_loss, correct = tf.zeros((), tf.float64), tf.zeros((), tf.int64)
        batches = dataset.batches(epoch)
        if worker.count == 1:
            batches = model.strategy.experimental_distribute_dataset(batches)
        for number, batch in enumerate(batches):
            seed = tf.constant([dataset.seed * 1_000_003 + epoch, number])
            loss, hits = step(batch, seed)
            total_loss += loss
            correct += hits
            on_batch(min(dataset.experiment.batch_size, count - number * dataset.experiment.batch_size))
        if worker.number:
            continue  # the others wait for the first at the next step
        probabilities = predict_probabilities(model, validation_images)
        if on_epoch(epoch, float(total_loss) / count, int(correct) / count, probabilities):
            _save(folder / CHECKPOINT.format(f"_{epoch:04}"), model.weights, epoch)
        _save(folder / RESUME, [*model.weights, *optimizer.state], epoch)


def make_step(model: CarModel, optimizer: RMSprop | Adam, experiment: Experiment) -> Callable:
    """Trace one step: (a batch, dropout seed (2,)) → the sum of its losses and the number of photos it got right."""

    def on_one_replica(batch, seed):
        images, changes, labels = batch
        if experiment.augment:
            images = warp(images, changes)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        with tf.GradientTape() as tape:
            logits = model(images, training=True, dropout_seed=seed + [0, 1_000_000] * replica)
            if logits.shape[1] == 1:
                targets = tf.cast(labels[:, None], logits.dtype)
                losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)[:, 0]
                predicted = tf.cast(logits[:, 0] > 0, labels.dtype)
            else:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
                predicted = tf.argmax(logits, axis=1, output_type=labels.dtype)
            # The mean over the whole batch, of which a replica holds a part.
            photos = tf.distribute.get_replica_context().all_reduce(total, tf.cast(tf.size(labels), losses.dtype))
            loss = tf.reduce_sum(losses) / photos
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(tf.distribute.get_replica_context().all_reduce(total, gradients))
        hits = tf.reduce_sum(tf.cast(predicted == labels, tf.int64))
        return tf.cast(tf.reduce_sum(losses), tf.float64), hits

    strategy, total = model.strategy, tf.distribute.ReduceOp.SUM

    @tf.function(reduce_retracing=True)
    def step(batch, seed):
        loss, hits = strategy.run(on_one_replica, args=(batch, seed))
        return strategy.reduce(total, loss, axis=None), strategy.reduce(total, hits, axis=None)

    return step


def make_optimizer(model: CarModel, experiment: Experiment, steps: int) -> RMSprop | Adam:
    """Give the experiment's optimizer for the variables that learn, in a training of `steps` steps."""
    if experiment.optimizer == "rmsprop":
        return RMSprop(model.trainable_variables, experiment.learning_rate)
    return Adam(model.trainable_variables, learning_rates(experiment, steps))


class RMSprop(tf.Module):
    """RMSprop as Keras has it, Hinton's lecture 6e: v ← ρ·v + (1 - ρ)·g², w ← w - rate · g / √(v + ε)."""

    def __init__(self, variables: list[tf.Variable], rate: float, rho: float = 0.9, epsilon: float = 1e-7):
        super().__init__()
        self.targets, self.rate, self.rho, self.epsilon = variables, rate, rho, epsilon
        self.state = self.squares = _zeros_like(variables)

    def apply(self, gradients: list[tf.Tensor]) -> None:
        for variable, square, gradient in zip(self.targets, self.squares, gradients, strict=True):
            mean = self.rho * square + (1 - self.rho) * tf.square(gradient)
            square.assign(mean)
            variable.assign(variable - self.rate * gradient / tf.sqrt(mean + self.epsilon))


class Adam(tf.Module):
    """Adam (Kingma & Ba 2015) with a rate for each step; as Keras has it, ε joins √v before that is corrected."""

    def __init__(
        self,
        variables: list[tf.Variable],
        rates: np.ndarray,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-7,
    ):
        super().__init__()
        self.targets, self.rates, self.betas, self.epsilon = variables, rates, betas, epsilon
        self.taken = tf.Variable(
            0, trainable=False, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
        )
        self.means, self.squares = _zeros_like(variables), _zeros_like(variables)
        self.state = [self.taken, *self.means, *self.squares]

    def apply(self, gradients: list[tf.Tensor]) -> None:
        beta, beta_square = self.betas
        dtype = self.targets[0].dtype
        taken = tf.cast(self.taken + 1, dtype)
        rate = tf.cast(tf.gather(self.rates, self.taken), dtype)
        rate *= tf.sqrt(1 - beta_square**taken) / (1 - beta**taken)
        self.taken.assign_add(1)
        for variable, mean, square, gradient in zip(self.targets, self.means, self.squares, gradients, strict=True):
            mean.assign(mean + (1 - beta) * (gradient - mean))
            square.assign(square + (1 - beta_square) * (tf.square(gradient) - square))
            variable.assign(variable - rate * mean / (tf.sqrt(square) + self.epsilon))


def _zeros_like(variables: list[tf.Variable]) -> list[tf.Variable]:
    return [tf.Variable(tf.zeros_like(v), trainable=False, **ON_EVERY_REPLICA) for v in variables]


def predict_probabilities(model: CarModel, images: np.ndarray, batch_size: int = 100) -> np.ndarray:
    """Give the class probabilities of images uint8 (N, S, S, 3), or of features (N, F): float32 (N, classes)."""
    predict = model.predict if images.ndim == 4 else model.__call__
    starts = range(0, len(images), batch_size)
    logits = [predict(tf.constant(images[start : start + batch_size])).numpy() for start in starts]
    return probabilities_from_logits(np.concatenate(logits))


def describe(model: CarModel) -> dict:
    """Give what a run records about its model and machine: parameters (learned ones), device, versions."""
    gpus = tf.config.list_physical_devices("GPU")
    processes = f", {count} processes" if (count := this_worker("tensorflow").count) > 1 else ""
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
    return {
        "parameters": sum(int(np.prod(variable.shape)) for variable in model.trainable_variables),
        "device": (", ".join(names) or f"CPU, {os.cpu_count()} cores") + processes,
        "versions": f"tensorflow {tf.__version__}",
    }


def _save(path: Path, variables: list[tf.Variable], epoch: int) -> None:
    partial = path.with_suffix(".part.npz")
    np.savez(partial, epoch=epoch, **{str(number): variable.numpy() for number, variable in enumerate(variables)})
    os.replace(partial, path)


def _load(path: Path, variables: list[tf.Variable]) -> int:
    with np.load(path) as state:
        for number, variable in enumerate(variables):
            variable.assign(state[str(number)])
        return int(state["epoch"])
