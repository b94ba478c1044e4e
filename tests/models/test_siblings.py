"""The three lesson files: the same network, the same batches, the same steps."""

import copy
import importlib
import os
from dataclasses import replace
from types import SimpleNamespace

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # bit-equal repeats, and not slower on images this small
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import numpy as np
import pytest

from carspotter.models.experiments import (
    BASELINE,
    BATCH_NORM,
    BATCH_NORM_BEFORE_RELU,
    DROPOUT,
    FAST_RECIPE,
    SERIES,
    draw_epoch,
)
from carspotter.models.metrics import accuracy
from carspotter.photos.augmentation import warp_images

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
tf = pytest.importorskip("tensorflow")

from sibling_weights import copy_weights, keras_to_torch  # noqa: E402

from carspotter.models.parity import definition_differences  # noqa: E402

pytestmark = pytest.mark.slow
FRAMEWORKS = ("keras", "torch", "tensorflow")
SIZE, BATCH = 48, 8
SMALL = {"conv_channels": (4, 4, 8, 8), "batch_size": BATCH, "image_size": SIZE, "learning_rate": 1e-3}
PARITY = {
    experiment.name: replace(
        experiment,
        **SMALL,
        dense_units=min(experiment.dense_units, 16),
        augmentation="none",
        dropout_rate=0.0,
        schedule="constant",
        dtype="float64",
    )
    for experiment in (BASELINE, BATCH_NORM, BATCH_NORM_BEFORE_RELU, FAST_RECIPE)
}


@pytest.fixture(params=FRAMEWORKS)
def sibling(request):
    return lesson(request.param)


@pytest.fixture
def float64():
    """Let Keras' losses and learning rates be float64 too, which no spec asks for."""
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


@pytest.fixture(scope="module")
def photos():
    """Return noise of 48 px and labels that its brightness tells: 40 photos, two classes."""
    rng = np.random.default_rng(1)
    labels = np.arange(40) % 2
    images = rng.integers(0, 120, (40, SIZE, SIZE, 3), dtype=np.uint8)
    images[labels == 1] += 100
    return images, labels


def lesson(framework):
    torch.set_num_threads(1)
    return importlib.import_module(f"carspotter.models.{framework}_cnn")


def build(sibling, experiment, classes=2, seed=0):
    keras.utils.set_random_seed(seed)
    torch.manual_seed(seed)
    model = sibling.build_model(experiment, classes)
    if experiment.dtype == "float64" and isinstance(model, keras.Model):
        (scaling,) = (layer for layer in model.layers if isinstance(layer, keras.layers.Rescaling))
        scaling.scale = np.float64(1 / 255)  # which Keras keeps in float32 otherwise
    return model


def trained(sibling, experiment, images, labels, classes=2, seed=0):
    model = build(sibling, experiment, classes, seed)
    sibling.train(model, sibling.PhotoBatches(images, labels, experiment, seed), experiment)
    return model


def weights_of(model):
    """Return weights with running means and variances, in PyTorch's layout."""
    if isinstance(model, torch.nn.Module):
        return [t.numpy().copy() for name, t in model.state_dict().items() if "num_batches" not in name]
    return keras_to_torch(model.get_weights())


def training_logits(model, images):
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            return model.train()(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    return model(images, training=True).numpy()


def batches_of(sibling, batches, epoch):
    """Return all of an epoch as the model sees it: images (N, S, S, 3), labels (N,)."""
    if sibling is lesson("keras"):
        batches.next_epoch = epoch
        batches.on_epoch_begin()
        found = [batches[step] for step in range(len(batches))]
    else:
        found = list(batches.epoch(epoch))
    images, labels = (np.concatenate([np.asarray(batch) for batch in part]) for part in zip(*found, strict=True))
    return (images.transpose(0, 2, 3, 1) if sibling is lesson("torch") else images), labels


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def train_with_sgd(monkeypatch, experiment, images, labels, classes, rate):
    """Return each framework's model after training with plain SGD from the same weights, and its last epoch's loss."""
    models, losses = {}, {}
    for framework in FRAMEWORKS:
        sibling = lesson(framework)
        sgd = (
            (lambda model, *_: torch.optim.SGD(model.parameters(), rate))
            if framework == "torch"
            else (lambda *_: keras.optimizers.SGD(rate))
        )
        monkeypatch.setattr(sibling, "make_optimizer", sgd)
        model = models[framework] = build(sibling, experiment, classes)
        if framework == "torch":
            copy_weights(build(lesson("keras"), experiment, classes), model)
        history = sibling.train(model, sibling.PhotoBatches(images, labels, experiment), experiment)
        losses[framework] = history.history["loss"][-1] if framework == "keras" else history[-1]["loss"]
    return models, losses


# --- each of the three ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "parameters"),
    [
        *((SERIES[name], 3_453_121) for name in ("baseline_cnn", "augmentation", "dropout")),
        # scale and shift for 32 + 64 + 128 + 128 channels and 512 dense units
        *((SERIES[name], 3_453_121 + 2 * 864) for name in ("batch_norm", "batch_norm_before_relu")),
        # kernels and biases, scale and shift, and 257 in the head
        (FAST_RECIPE, 9 * (3 * 16 + 16 * 32 + 32 * 64 + 64 * 128 + 128 * 256) + 3 * 496 + 257),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_parameters_at_full_size(sibling, experiment, parameters):
    def count(classes):
        model = build(sibling, experiment, classes)
        if isinstance(model, torch.nn.Module):
            return sum(weight.numel() for weight in model.parameters())
        return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)

    assert count(2) == parameters
    assert count(3) == parameters + 2 * ((experiment.dense_units or 256) + 1)


@pytest.mark.parametrize(("experiment", "classes"), [(DROPOUT, 2), (FAST_RECIPE, 3)])
def test_probabilities_of_each_class(sibling, photos, experiment, classes):
    experiment = replace(experiment, image_size=SIZE)
    probabilities = sibling.predict(build(sibling, experiment, classes), photos[0][:5], experiment)
    assert probabilities.shape == (5, classes) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_images_too_small_are_refused(sibling):
    with pytest.raises(ValueError, match="45 px"):
        sibling.build_model(replace(BASELINE, image_size=45), 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_learns_two_classes(sibling, photos, dtype):
    experiment = replace(BATCH_NORM, **SMALL, dense_units=16, dropout_rate=0.1, epochs=40, dtype=dtype)
    model = trained(sibling, experiment, *photos)
    assert accuracy(photos[1], sibling.predict(model, photos[0], experiment)) >= 0.95
    # The logits are never rounded to bfloat16.
    assert all(weight.dtype == np.float32 for weight in weights_of(model))


def test_learns_three_classes_and_measures_validation(sibling):
    rng, labels = np.random.default_rng(2), np.arange(36) % 3
    images = rng.integers(0, 60, (36, SIZE, SIZE, 3), dtype=np.uint8)
    images[np.arange(36), :, :, labels] += 150  # red, green, blue
    experiment = replace(BASELINE, **SMALL | {"conv_channels": (8, 8, 16, 16)}, dense_units=16, epochs=24)
    model = build(sibling, experiment, 3)
    history = sibling.train(model, sibling.PhotoBatches(images, labels, experiment), experiment, (images, labels))
    measured = accuracy(labels, sibling.predict(model, images, experiment))
    assert measured >= 0.95
    last = history.history["val_accuracy"][-1] if sibling is lesson("keras") else history[-1]["val_accuracy"]
    assert last == pytest.approx(measured)


def test_the_same_seed_gives_the_same_weights(sibling, photos):
    experiment = replace(BATCH_NORM, **SMALL, dense_units=16, epochs=2)
    first, again = (weights_of(trained(sibling, experiment, *photos, seed=3)) for _ in range(2))
    for array, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(array, same)
    fresh, other = (weights_of(build(sibling, experiment, seed=seed)) for seed in (3, 4))
    assert (fresh[0] != other[0]).any() and (fresh[0] != first[0]).any()


def test_mirror_images_are_averaged_at_prediction(sibling, photos):
    experiment = replace(FAST_RECIPE, image_size=SIZE)
    model, images = build(sibling, experiment), photos[0][:8]
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    both = sibling.predict(model, images, experiment)
    np.testing.assert_allclose(both, sibling.predict(model, mirrored, experiment), atol=1e-6)
    lopsided = replace(experiment, average_mirror_images=False)
    one, other = (sibling.predict(model, pixels, lopsided) for pixels in (images, mirrored))
    assert np.abs(one - other).max() > 1e-4
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-6)


@pytest.mark.parametrize("experiment", [SERIES["augmentation"], FAST_RECIPE], ids=lambda experiment: experiment.name)
def test_batches_are_those_of_the_draw(sibling, photos, experiment):
    images, labels = photos
    experiment = replace(experiment, image_size=SIZE, batch_size=16)
    draws = draw_epoch(experiment, 5, 3, len(images))
    seen, seen_labels = batches_of(sibling, sibling.PhotoBatches(images, labels, experiment, seed=5), epoch=3)
    order = draws.photos.ravel()
    assert len(order) == 32, "the last eight are dropped"
    np.testing.assert_array_equal(seen_labels, labels[order])
    expected = warp_images(images[order], draws.affine.reshape(-1, 3, 3))
    if draws.colours is not None:
        colours = draws.colours.reshape(-1, 3, 4)
        changed = np.einsum("nij,nyxj->nyxi", colours[..., :3], expected) + 255 * colours[:, None, None, :, 3]
        assert np.abs(changed - expected).mean() > 5
        expected = np.clip(changed, 0, 255)
    assert np.abs(seen - expected).mean() < 0.02, "in levels of 255"


def test_without_augmentation_pixels_stay(sibling, photos):
    images, labels = photos
    experiment = replace(BASELINE, image_size=SIZE, batch_size=64)  # more than there are: one batch of all
    seen, seen_labels = batches_of(sibling, sibling.PhotoBatches(images, labels, experiment), epoch=0)
    order = draw_epoch(experiment, 0, 0, len(images)).photos.ravel()
    assert sorted(order) == list(range(40))
    np.testing.assert_array_equal(seen, images[order])
    np.testing.assert_array_equal(seen_labels, labels[order])


# --- the three side by side -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes"),
    [("baseline_cnn", 2), ("baseline_cnn", 3), ("batch_norm", 2), ("batch_norm_before_relu", 3), ("fast_recipe", 2)],
)
def test_parity_of_logits_loss_and_gradients(monkeypatch, float64, photos, name, classes):
    experiment = PARITY[name]
    images, labels = photos[0][:BATCH], np.arange(BATCH) % classes
    before = lesson("keras")
    start = build(before, experiment, classes)
    answers = {}
    for framework in FRAMEWORKS:
        model = build(lesson(framework), experiment, classes)
        if framework == "torch":
            copy_weights(start, model)
        answers[framework] = training_logits(model, images)
    # One step of SGD at rate 1 is the gradient.
    models, losses = train_with_sgd(monkeypatch, replace(experiment, epochs=1), images, labels, classes, rate=1.0)
    learned = [
        index for index, weight in enumerate(start.weights) if any(weight is other for other in start.trainable_weights)
    ]
    first = weights_of(start)
    gradients = {
        name: np.concatenate([(first[index] - weights_of(model)[index]).ravel() for index in learned])
        for name, model in models.items()
    }
    for other in ("torch", "tensorflow"):
        assert relative(answers[other], answers["keras"]) < 1e-6
        assert losses[other] == pytest.approx(losses["keras"], rel=1e-6)
        assert relative(gradients[other], gradients["keras"]) < 1e-6


@pytest.mark.parametrize("experiment", PARITY.values(), ids=PARITY)
def test_parity_after_ten_steps_of_sgd(monkeypatch, float64, photos, experiment):
    images, labels = photos
    experiment = replace(experiment, epochs=2)  # five steps each
    models, losses = train_with_sgd(monkeypatch, experiment, images, labels, classes=2, rate=0.01)
    start = weights_of(build(lesson("keras"), experiment))
    assert relative(weights_of(models["keras"])[0], start[0]) > 1e-4, "it learned something"
    if experiment.batch_norm != "none":
        assert_equal_running_averages(models, experiment, steps=10)
    answers = {name: training_logits(model, images[:BATCH]) for name, model in models.items()}
    for other in ("torch", "tensorflow"):
        assert relative(answers[other], answers["keras"]) < 1e-6
        assert losses[other] == pytest.approx(losses["keras"], rel=1e-6)


def assert_equal_running_averages(models, experiment, steps):
    """PyTorch's running variances are of the unbiased ones, n / (n - 1) larger, which is taken out here."""
    counts, side = [], SIZE
    for _ in experiment.conv_channels:
        side -= 0 if experiment.global_pooling else 2
        counts.append(BATCH * side**2)
        side //= 2
    counts += [BATCH] if experiment.dense_units else []
    norms = [layer for layer in models["keras"].layers if isinstance(layer, keras.layers.BatchNormalization)]
    siblings = [module for module in models["torch"].modules() if "BatchNorm" in type(module).__name__]
    kept = 0.9**steps  # of the 1 that they start from
    for count, norm, sibling in zip(counts, norms, siblings, strict=True):
        assert relative(sibling.running_mean.numpy(), norm.moving_mean.numpy()) < 1e-6
        biased = kept + (sibling.running_var.numpy() - kept) * (count - 1) / count
        assert relative(biased, norm.moving_variance.numpy()) < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 7, 200])
def test_parity_of_learning_rates(steps):
    experiment = replace(FAST_RECIPE, optimizer="adam")
    by_keras = lesson("keras").make_optimizer(experiment, steps)
    weight = torch.nn.Linear(1, 1)
    optimizer = lesson("torch").make_optimizer(weight, experiment)
    schedule = lesson("torch").make_schedule(optimizer, experiment, steps)
    rates, expected = [], []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        by_keras.iterations.assign(step)
        expected.append(float(by_keras.learning_rate))
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)
    if steps == 200:
        assert np.argmax(rates) == 30 and max(rates) == pytest.approx(2e-3) and rates[-1] < 1e-6


def test_definitions_that_stay_different_are_measured():
    table = definition_differences().set_index("definition")
    rmsprop = table.loc[table.index.str.startswith("RMSprop")].iloc[0]
    assert rmsprop["keras"] == pytest.approx(1e-4 / (0.1 * 1e-8 + 1e-7) ** 0.5, rel=1e-4)
    assert rmsprop["torch"] > 9 and rmsprop["torch_set"] == pytest.approx(rmsprop["keras"], rel=0.1)
    variance = table.loc[table.index.str.startswith("batch norm")].iloc[0]
    assert (variance["keras"], variance["torch"]) == (pytest.approx(1.2), pytest.approx(0.9 + 0.1 * 4))


def test_optimizers_have_the_same_arguments_where_they_can():
    weight = torch.nn.Linear(1, 1)
    for name, argument, by_keras in (("rmsprop", "alpha", "rho"), ("adam", "betas", "beta_1")):
        experiment = replace(BASELINE, optimizer=name)
        options = lesson("torch").make_optimizer(weight, experiment).defaults
        for framework in ("keras", "tensorflow"):
            other = lesson(framework).make_optimizer(experiment, steps=10)
            assert np.ravel(options[argument])[0] == getattr(other, by_keras) == 0.9
            assert float(other.learning_rate) == pytest.approx(options["lr"])
            root = 0.5 if name == "rmsprop" else 1
            assert options["eps"] == pytest.approx(other.epsilon**root)


def test_torch_resumed_is_bit_equal(photos):
    """What a callback has to keep: weights, optimizer, schedule and the random state of dropout."""
    torch_cnn = lesson("torch")
    experiment = replace(FAST_RECIPE, **SMALL | {"learning_rate": 2e-3}, dropout_rate=0.3, epochs=3)
    states = {}

    def callbacks(epoch_to_keep=None, state=None):
        kept = SimpleNamespace()

        def on_train_begin(model, optimizer, schedule):
            kept.parts = (model, optimizer, schedule)
            if state:
                for part, saved in zip(kept.parts, state["parts"], strict=True):
                    part.load_state_dict(saved)
                torch.set_rng_state(state["random"])

        def on_epoch_end(epoch, logs):
            if epoch == epoch_to_keep:
                parts = copy.deepcopy([part.state_dict() for part in kept.parts])
                states["kept"] = {"parts": parts, "random": torch.get_rng_state()}

        return [SimpleNamespace(on_train_begin=on_train_begin, on_epoch_end=on_epoch_end)]

    batches = torch_cnn.PhotoBatches(*photos, experiment)
    whole = build(torch_cnn, experiment)
    torch_cnn.train(whole, batches, experiment, callbacks=callbacks(epoch_to_keep=0))
    resumed = build(torch_cnn, experiment, seed=9)
    torch_cnn.train(resumed, batches, experiment, first_epoch=1, callbacks=callbacks(state=states["kept"]))
    for found, expected in zip(weights_of(resumed), weights_of(whole), strict=True):
        np.testing.assert_array_equal(found, expected)
