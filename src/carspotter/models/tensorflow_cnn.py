"""Signatures first; the implementation follows."""

CHECKPOINT = "..."


def build_model(experiment, classes):
    """Return a CNN: images (N, S, S, 3), uint8 or float 0…255 → logits (N, 1) for two classes, else (N, classes)."""


class PhotoBatches:
    """PhotoBatches(images, labels, experiment, seed=0): shuffled, augmented batches; len() is the steps of an epoch.

    images: numpy (N, H, W, C), uint8 images or float maps of a frozen backbone (features as (N, 1, 1, F)); labels: class numbers (N,).
    """


def train(model, batches, experiment, validation=None, first_epoch=0, callbacks=()):
    """Train up to experiment.epochs; works with any model images → logits. callbacks are objects with on_train_begin(model, optimizer, schedule) and on_epoch_end(epoch, logs), epoch from 0; model and optimizer are Keras' (schedule is in optimizer; given as None).

    validation: (images, labels) or None; only for a caller without callbacks of its own. Return a list of the epochs' logs.
    """


def predict(model, images, experiment):
    """Return float32 probabilities (N, classes) of numpy images (N, H, W, C); averages mirror images where asked."""
