"""Metrics against hand-made cases and against scikit-learn's."""

import numpy as np
import pytest

from carspotter.models.metrics import accuracy, confusion, log_loss, probabilities_from_logits

LABELS = np.array([0, 0, 1, 2, 2])
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]])


def test_by_hand():
    assert accuracy(LABELS, PROBABILITIES) == pytest.approx(3 / 5)
    assert confusion(LABELS, PROBABILITIES).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert log_loss(LABELS, PROBABILITIES) == pytest.approx(-np.log([0.7, 0.1, 0.5, 0.8, 0.2]).mean())


def test_as_scikit_learn_has_it():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(7)
    labels, probabilities = rng.integers(0, 4, 300), rng.dirichlet(np.ones(4), 300)
    assert accuracy(labels, probabilities) == metrics.accuracy_score(labels, probabilities.argmax(axis=1))
    assert log_loss(labels, probabilities) == pytest.approx(metrics.log_loss(labels, probabilities))
    expected = metrics.confusion_matrix(labels, probabilities.argmax(axis=1))
    np.testing.assert_array_equal(confusion(labels, probabilities), expected)


def test_one_logit_is_a_sigmoid_that_keeps_its_small_side():
    probabilities = probabilities_from_logits(np.array([[0.0], [40.0], [-40.0], [800.0]], np.float32))
    assert probabilities.dtype == np.float32 and probabilities.shape == (4, 2)
    np.testing.assert_allclose(probabilities[0], [0.5, 0.5])
    np.testing.assert_allclose(probabilities[1], [np.exp(-40.0), 1], rtol=1e-6)
    np.testing.assert_allclose(probabilities[2], [1, np.exp(-40.0)], rtol=1e-6)
    assert np.isfinite(log_loss(np.array([0]), probabilities[3:]))


def test_several_logits_are_a_softmax():
    logits = np.array([[1000.0, 1000.0, 0.0], [0.0, np.log(3), -np.inf]])
    np.testing.assert_allclose(probabilities_from_logits(logits), [[0.5, 0.5, 0], [0.25, 0.75, 0]], atol=1e-7)


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [(np.array([]), np.empty((0, 2))), (np.array([0, 1]), np.ones((3, 2))), (np.array([0, 1]), np.ones(2))],
    ids=["no photos", "another number of photos", "one probability each"],
)
@pytest.mark.parametrize("metric", [accuracy, confusion, log_loss])
def test_what_does_not_fit_is_refused(metric, labels, probabilities):
    with pytest.raises(ValueError, match="one label and one row"):
        metric(labels, probabilities)
