"""The experiments in Keras 3: a functional model, `fit` and callbacks; on any Keras backend (`KERAS_BACKEND`).

What to see here: the model is a graph of layers that carries its own preprocessing, training is declared (`compile`,
`fit`), and what happens between epochs hangs on a callback. Siblings: torch_models.py, tf_models.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from itertools import count
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported: its banner is not ours

import keras
import numpy as np
from keras import layers, ops

from carspotter.models.experiments import (
    CAFFE_MEANS,
    MOBILENET_BLOCKS,
    MOBILENET_LEVELS,
    Experiment,
    convolutions,
    draw_colours,
    draw_epoch,
    feature_side,
    learning_rates,
)
from carspotter.models.metrics import probabilities_from_logits
from carspotter.models.weights import read_vgg16
from carspotter.photos.augmentation import RANGES

CHECKPOINT = "checkpoint{}.weights.h5"
RESUME = "resume.npz"
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # a last, smaller batch makes it warn of retracing

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float64": "float64"}


class PhotoDataset(keras.utils.PyDataset):
    """Batches in the order of `draw_epoch`: ((images uint8, changes float32 (B, 8 or 20)), labels float32 (B, 1)).

    The images stay uint8 until they are on the device; the layer `Warp` applies the changes there: eight numbers name
    an affine one, and twelve more the one of colours, if any.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, experiment: Experiment, seed: int, training: bool):
        super().__init__()
        self.images, self.labels, self.experiment, self.seed, self.training = images, labels, experiment, seed, training
        self.epoch = 1
        self.draw = lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return -(-len(self.images) // self.experiment.batch_size)

    def __getitem__(self, index: int):
        order, changes = self.draw(self.epoch)
        batch = slice(index * self.experiment.batch_size, (index + 1) * self.experiment.batch_size)
        photos = order[batch]
        inputs = (self.images[photos],)
        if changes is not None:
            inputs += (changes[batch],)
        return inputs, self.labels[photos, None].astype(np.float32)

    def on_epoch_end(self) -> None:
        self.epoch += 1

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        if not self.training:
            return np.arange(len(self.images)), None
        count, size = self.images.shape[:2]
        order, matrices = draw_epoch(self.experiment, self.seed, epoch, count, size)
        if matrices is None:
            return order, None
        colours = draw_colours(self.experiment, self.seed, epoch, count)
        changes = [matrices.reshape(-1, 9)[:, :8]] + ([] if colours is None else [colours.reshape(-1, 12)])
        return order, np.concatenate(changes, axis=1, dtype=np.float32)


def warp(images, changes):
    """Apply one change per photo, float32 (B, 8 or 20), to images uint8 (B, S, S, 3): float32.

    Affine: bilinear; the nearest border pixel repeats. Then one of colours, where there are twelve more numbers,
    (3, 4), for values 0 … 1.
    """
    count, size = ops.shape(images)[0], images.shape[1]
    pixel = ops.arange(size, dtype="float32")
    across, down, start = ops.unstack(ops.reshape(changes[:, :6], (-1, 2, 3, 1, 1)), 3, axis=2)
    place = across * pixel + down * pixel[:, None] + start  # x and y in the photo, for each pixel of the new one
    place = ops.clip(place, 0, size - 1)  # repeats the border
    corner = ops.minimum(ops.floor(place), size - 2)  # at the last pixel the share is 1
    share = (place - corner)[..., None]
    corner = ops.cast(corner, "int32")
    photo = ops.arange(count, dtype="int32")[:, None, None]
    upper_left = (photo * size + corner[:, 1]) * size + corner[:, 0]
    pixels = ops.reshape(images, (-1, 3))

    def row(step):
        left, right = (ops.cast(ops.take(pixels, upper_left + step + side, axis=0), "float32") for side in (0, 1))
        return left * (1 - share[:, 0]) + right * share[:, 0]

    warped = row(0) * (1 - share[:, 1]) + row(size) * share[:, 1]
    if changes.shape[1] == 8:
        return warped
    colours = ops.transpose(ops.reshape(changes[:, 8:], (-1, 3, 4)), (0, 2, 1))
    changed = ops.matmul(ops.reshape(warped, (-1, size * size, 3)), colours[:, :3]) + 255 * colours[:, 3:]
    return ops.reshape(ops.clip(changed, 0, 255), (-1, size, size, 3))


class Warp(layers.Layer):
    """Applies `warp` to a batch, in one operation where XLA can be had."""

    def __init__(self, **options):
        super().__init__(**options)
        self.warp = warp
        if keras.backend.backend() == "tensorflow":
            # One loop instead of forty operations; JAX compiles it with the model. On a GPU XLA wants parts of CUDA
            # that not every installation has.
            tf = import_module("tensorflow")
            self.warp = tf.function(warp, jit_compile=not tf.config.list_physical_devices("GPU"))

    def call(self, images, changes):
        return self.warp(images, changes)

    def compute_output_shape(self, images_shape, changes_shape):
        return images_shape


@keras.saving.register_keras_serializable("carspotter")
class AddMirrorImages(layers.Layer):
    """At inference, puts the mirror images behind the photos of a batch."""

    def call(self, images, training=False):
        return images if training else ops.concatenate([images, ops.flip(images, axis=2)])

    def compute_output_shape(self, images_shape):
        return None, *images_shape[1:]


@keras.saving.register_keras_serializable("carspotter")
class AverageMirrorImages(layers.Layer):
    """At inference, takes the mean of each photo's features and its mirror image's."""

    def call(self, features, training=False):
        return features if training else sum(ops.split(features, 2)) / 2

    def compute_output_shape(self, features_shape):
        return features_shape


class OneRateAStep(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rates of `learning_rates`, step by step."""

    def __init__(self, rates: np.ndarray):
        self.rates = rates

    def __call__(self, step):
        return ops.take(ops.convert_to_tensor(self.rates), ops.cast(step, "int32"))


def make_dataset(
    images: np.ndarray, labels: np.ndarray, experiment: Experiment, seed: int = 0, training: bool = True
) -> PhotoDataset:
    """Make batches of images uint8 (N, S, S, 3) and class numbers (N,).

    Training batches are shuffled and, where the experiment says so, augmented; others keep the order and the pixels.
    """
    return PhotoDataset(images, labels, experiment, seed, training)


def build_model(
    experiment: Experiment, classes: int, image_size: int, seed: int = 0, weights: Path | None = None
) -> keras.Model:
    """Build the model: images (N, S, S, 3), 0 … 255 → logits, (N, 1) for two classes, (N, classes) for more.

    Fresh weights are a function of `seed`; `weights` names a checkpoint to load instead. A backbone's are brought by
    `load_backbone`. Raises ValueError when the images are too small for the blocks.
    """
    feature_side(experiment, image_size)
    dtype = keras.DTypePolicy(POLICIES[experiment.dtype])
    seeds = count(1000 * seed)

    def initial():  # Glorot & Bengio 2010; zeros for biases. Keras' defaults, written out for the siblings' sake
        return {
            "kernel_initializer": keras.initializers.GlorotUniform(seed=next(seeds)),
            "bias_initializer": "zeros",
            "dtype": dtype,
        }

    def scale(x):
        if experiment.backbone == "vgg16":
            return ops.flip(x, axis=-1) - ops.convert_to_tensor(CAFFE_MEANS, x.dtype)
        # A division, as the siblings do it: layers.Rescaling keeps 1/255 in float32 whatever the dtype.
        return x / 127.5 - 1 if experiment.backbone == "mobilenet_v2" else x / 255

    def activate(x):
        if experiment.batch_norm == "before_relu":
            x = layers.BatchNormalization(momentum=0.9, epsilon=1e-3, dtype=dtype)(x)
        x = layers.Activation("relu", dtype=dtype)(x)
        if experiment.batch_norm == "after_relu":
            x = layers.BatchNormalization(momentum=0.9, epsilon=1e-3, dtype=dtype)(x)
        return x

    image = keras.Input((image_size, image_size, 3), dtype=dtype.variable_dtype, name="image")
    x = scale(image)
    if experiment.mirrored:
        x = AddMirrorImages(dtype=dtype)(x)
    if experiment.backbone == "mobilenet_v2":
        # One layer for all of it. Its batch norm rests: with some weights it is folded into the convolutions.
        # In float32 whatever the dtype: on a CPU its narrow convolutions are no quicker in bfloat16.
        mobilenet = keras.applications.MobileNetV2(
            x.shape[1:], experiment.backbone_width, include_top=False, weights=None
        )
        levels = [mobilenet.get_layer(name).output for name in MOBILENET_LEVELS]
        backbone = keras.Model(mobilenet.inputs, levels if experiment.multi_level else levels[-1], name="backbone")
        first = MOBILENET_BLOCKS - experiment.tuned_blocks + 1
        names = [layer.name for layer in backbone.layers]
        learns_from = names.index(f"block_{first}_expand") if experiment.tuned_blocks else len(names)
        for number, layer in enumerate(backbone.layers):
            layer.trainable = number >= learns_from and not isinstance(layer, layers.BatchNormalization)
        x = backbone(x, training=False)
    padding = "same" if experiment.any_size else "valid"
    for channels, pooled, learns in convolutions(experiment):
        x = activate(layers.Conv2D(channels, 3, padding=padding, trainable=learns, **initial())(x))
        x = layers.MaxPooling2D(2, dtype=dtype)(x) if pooled else x
    if experiment.multi_level:
        pools = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
        x = layers.Concatenate(dtype=dtype)([pool(dtype=dtype)(maps) for maps in x for pool in pools])
    else:
        flatten = layers.GlobalAveragePooling2D if experiment.any_size else layers.Flatten
        x = flatten(dtype=dtype)(x)
    # A name for what the head sees: `compute_features` and `head_of` cut the model there.
    features = AverageMirrorImages if experiment.mirrored else partial(layers.Activation, "linear")
    x = features(dtype=dtype, name="features")(x)
    if experiment.multi_level:  # a mean over many cells is small, a maximum large
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-3, center=False, scale=False, dtype=dtype)(x)
    if experiment.dropout_rate:
        x = layers.Dropout(experiment.dropout_rate, seed=next(seeds), dtype=dtype)(x)
    if experiment.dense_units:
        x = activate(layers.Dense(experiment.dense_units, **initial())(x))
    # The last sum is not rounded to bfloat16: probabilities near 0 and 1 would clump.
    last = initial() | {"dtype": dtype.variable_dtype}
    logits = layers.Dense(1 if classes == 2 else classes, name="logits", **last)(x)
    model = keras.Model(image, logits, name=experiment.name)
    if weights:
        model.load_weights(weights)
    return model


def load_backbone(model: keras.Model, path: Path) -> None:
    """Load a backbone's weights, a Keras file without the top; raises ValueError where they do not fit."""
    if "backbone" in [layer.name for layer in model.layers]:
        # Files name the layers by their order in a model with these last maps alone.
        backbone = model.get_layer("backbone")
        whole = keras.Model(backbone.inputs, backbone.get_layer(MOBILENET_LEVELS[-1]).output)
        try:
            whole.load_weights(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: not weights of MobileNetV2 of this width without the top: {error}") from error
        return
    kernels_and_biases = [v for layer in model.layers if isinstance(layer, layers.Conv2D) for v in layer.weights]
    arrays = read_vgg16(path, [tuple(variable.shape) for variable in kernels_and_biases])
    for variable, array in zip(kernels_and_biases, arrays, strict=True):
        variable.assign(array)


def compute_features(model: keras.Model, images: np.ndarray, batch_size: int = 50) -> np.ndarray:
    """Give what a model's head sees of images uint8 (N, S, S, 3): float32 (N, features). The backbone is at rest."""
    body = keras.Model(model.input, model.get_layer("features").output)
    starts = range(0, len(images), batch_size)
    return np.concatenate(
        [body.predict_on_batch(np.asarray(images[start : start + batch_size])).astype(np.float32) for start in starts]
    )


def head_of(model: keras.Model) -> keras.Model:
    """Give the part of a model behind its features, with the same weights: features (N, F) → logits."""
    first = [layer.name for layer in model.layers].index("features") + 1
    x = features = keras.Input(model.get_layer("features").output.shape[1:], dtype=model.layers[-1].dtype)
    for layer in model.layers[first:]:
        x = layer(x)
    return keras.Model([features], x)


def train(
    model: keras.Model,
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
    and `validation_images` hold features instead of images.
    """
    trained = make_trained(model, dataset.experiment, epochs * len(dataset))
    finished = _load_state(folder / RESUME, trained)
    dataset.epoch = finished + 1
    epoch_end = _EpochEnd(model, dataset, validation_images, folder, on_epoch, on_batch)
    trained.fit(dataset, initial_epoch=finished, epochs=epochs, shuffle=False, verbose=0, callbacks=[epoch_end])


def make_trained(model: keras.Model, experiment: Experiment, steps: int) -> keras.Model:
    """Give the compiled model that `fit` sees: uint8 images, warped on the way where the experiment augments, → logits.

    It shares its weights with `model`, which stays free of augmentation. With a frozen backbone it is the head alone.
    Its optimizer has a learning rate for each of `steps` steps.
    """
    if experiment.frozen:
        trained = head_of(model)
    else:
        inputs = [keras.Input(model.input_shape[1:], dtype="uint8", name="photo")]
        if experiment.augment:
            numbers = 20 if RANGES[experiment.ranges].colours else 8
            inputs.append(keras.Input((numbers,), dtype="float32", name="changes"))
        warped = Warp(dtype="float32")(*inputs) if experiment.augment else inputs[0]
        trained = keras.Model(inputs, model(warped))
    if model.output_shape[1] == 1:
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        metric = keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        metric = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    if experiment.optimizer == "rmsprop":
        optimizer = keras.optimizers.RMSprop(experiment.learning_rate, rho=0.9, epsilon=1e-7)
    else:
        rates = OneRateAStep(learning_rates(experiment, steps))
        optimizer = keras.optimizers.Adam(rates, beta_1=0.9, beta_2=0.999, epsilon=1e-7)
    # XLA on the CPU forgoes oneDNN's convolutions and is several times slower; JAX has nothing else.
    trained.compile(optimizer, loss, metrics=[metric], jit_compile=keras.backend.backend() == "jax")
    optimizer.build(trained.trainable_variables)
    return trained


def predict_probabilities(model: keras.Model, images: np.ndarray, batch_size: int = 100) -> np.ndarray:
    """Give the class probabilities of images uint8 (N, S, S, 3), or of features (N, F): float32 (N, classes)."""
    if images.ndim == 2 and len(model.input_shape) == 4:
        model = head_of(model)
    starts = range(0, len(images), batch_size)
    logits = [model.predict_on_batch(np.asarray(images[start : start + batch_size])) for start in starts]
    return probabilities_from_logits(np.concatenate(logits))


def describe(model: keras.Model) -> dict:
    """Give what a run records about its model and machine: parameters (learned ones), device, versions."""
    backend = keras.backend.backend()
    library = import_module(backend)
    placed = str(getattr(model.trainable_variables[0].value, "device", "")).lower()
    return {
        "parameters": sum(int(np.prod(variable.shape)) for variable in model.trainable_variables),
        "device": "GPU" if "gpu" in placed or "cuda" in placed else f"CPU, {os.cpu_count()} cores",
        "versions": f"keras {keras.__version__} on {backend} {library.__version__}",
    }


class _EpochEnd(keras.callbacks.Callback):
    """Validates, reports, keeps the best weights and leaves the state from which a killed run goes on."""

    def __init__(self, core, dataset, validation_images, folder, on_epoch, on_batch):
        super().__init__()
        self.core, self.dataset, self.validation_images = core, dataset, validation_images
        self.folder, self.on_epoch, self.on_batch = folder, on_epoch, on_batch

    def on_train_batch_end(self, batch, logs=None):
        size = self.dataset.experiment.batch_size
        self.on_batch(min(size, len(self.dataset.images) - batch * size))

    def on_epoch_end(self, epoch, logs=None):
        epoch += 1  # Keras counts from 0
        # With a frozen backbone the trained model is the head, and predicts from features.
        predictor = self.model if self.validation_images.ndim == 2 else self.core
        probabilities = predict_probabilities(predictor, self.validation_images)
        if self.on_epoch(epoch, logs["loss"], logs["accuracy"], probabilities):
            self.core.save_weights(self.folder / CHECKPOINT.format(f"_{epoch:04}"))
        _save_state(self.folder / RESUME, self.model, epoch)


def _state(model: keras.Model) -> list[keras.Variable]:
    return [*model.variables, *model.optimizer.variables]  # with the dropout's random state


def _save_state(path: Path, model: keras.Model, epoch: int) -> None:
    partial = path.with_suffix(".part.npz")
    np.savez(partial, epoch=epoch, **{str(n): ops.convert_to_numpy(v) for n, v in enumerate(_state(model))})
    os.replace(partial, path)


def _load_state(path: Path, model: keras.Model) -> int:
    if not path.exists():
        return 0
    with np.load(path) as state:
        for number, variable in enumerate(_state(model)):
            variable.assign(state[str(number)])
        return int(state["epoch"])
