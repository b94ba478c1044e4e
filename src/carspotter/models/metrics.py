"""The metrics of all frameworks: `labels` are class numbers (N,), `probabilities` float (N, classes)."""

import numpy as np

SMALLEST = 1e-30  # probabilities are raised to this before their logarithm is taken


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the share of photos whose most probable class is their label."""
    labels, probabilities = check_shapes(labels, probabilities)
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def confusion(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Count photos by class: int64 (classes, classes), rows are labels, columns are predictions."""
    labels, probabilities = check_shapes(labels, probabilities)
    counts = np.zeros((probabilities.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return counts


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean negative log-likelihood in nats; a probability of 0 counts as SMALLEST."""
    labels, probabilities = check_shapes(labels, probabilities)
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.mean(np.log(np.maximum(of_label, SMALLEST))))


def probabilities_from_logits(logits: np.ndarray) -> np.ndarray:
    """Turn logits into float32 probabilities (N, classes): one column is a sigmoid for two classes, more are a softmax.

    Both sides of the sigmoid are computed from the logit: 1 - p would round to 0 where the model is sure.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return softmax(logits).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis, float64; SciPy's would make a server load SciPy."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits behind probabilities by a temperature: above 1 they soften, below 1 they sharpen; float64.

    Guo et al. 2017. Logarithms of probabilities are logits up to a constant for each photo, which cancels.
    """
    return softmax(np.log(np.maximum(np.asarray(probabilities, np.float64), SMALLEST)) / temperature)


def check_shapes(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays. Raises ValueError unless they have one row per photo, and one photo at least."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if len(labels) == 0 or probabilities.ndim != 2 or len(labels) != len(probabilities):
        raise ValueError(
            f"labels of shape {labels.shape} and probabilities of shape {probabilities.shape}: "
            "one label and one row of probabilities per photo are needed, and at least one photo"
        )
    return labels, probabilities
