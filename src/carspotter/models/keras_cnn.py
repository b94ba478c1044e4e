"""Signatures first; the implementation follows."""

CHECKPOINT = "..."


def build_model(experiment, classes):
    """Return a CNN: images (N, S, S, 3), uint8 or float 0…255 → logits (N, 1) for two classes, else (N, classes)."""


class PhotoBatches:
    """PhotoBatches(images, labels, experiment, seed=0): shuffled, augmented batches; len() is the steps of an epoch.

    images: numpy (N, H, W, C), uint8 images or float maps of a frozen backbone (features as (N, 1, 1, F)); labels: class numbers (N,).
    """


def train(model, batches, experiment, validation=None, first_epoch=0, callbacks=()):
    """Train up to experiment.epochs; works with any model images → logits. Keras callbacks; the draws go on with first_epoch (batches.epoch).

    validation: (images, labels) or None; only for a caller without callbacks of its own. Return Keras' History.
    """


def predict(model, images, experiment):
    """Return float32 probabilities (N, classes) of numpy images (N, H, W, C); averages mirror images where asked."""
