"""Calibration: the table of scikit-learn, the temperature that was put in, one floor for fitting and applying."""

import numpy as np
import pytest
from scipy import special
from sklearn.calibration import calibration_curve

from carspotter.evidence.calibration import apply_temperature, expected_calibration_error, fit_temperature, reliability


@pytest.fixture(scope="module")
def too_sure():
    """Labels drawn from probabilities, and the same probabilities with logits doubled: a model twice too sure."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1.5, (4_000, 3))
    true = special.softmax(logits, axis=1)
    labels = (rng.random(4_000)[:, None] > true.cumsum(axis=1)).sum(axis=1)
    return labels, true, special.softmax(2 * logits, axis=1)


def test_the_reliability_table_is_that_of_scikit_learn(too_sure):
    labels, _, probabilities = too_sure
    table = reliability(labels, probabilities)
    right, confidence = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1)
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=10)
    np.testing.assert_allclose(table["accuracy"], accuracy)
    np.testing.assert_allclose(table["confidence"], mean_confidence)
    assert table["photos"].sum() == len(labels)
    undecided = reliability([0], [[0.5, 0.5]])  # an edge belongs to the bin below it
    assert (undecided["low"][0], undecided["high"][0]) == (0.4, 0.5)
    assert ((table["low"] < table["confidence"]) & (table["confidence"] <= table["high"])).all()


def test_the_calibration_error_by_hand_and_near_zero_for_honest_probabilities(too_sure):
    probabilities = [[0.85, 0.15], [0.85, 0.15], [0.35, 0.65], [0.35, 0.65]]
    # one bin: .85 sure and half right; the other: .65 sure and all right
    assert expected_calibration_error([0, 1, 1, 1], probabilities) == pytest.approx((0.35 + 0.35) / 2)
    labels, honest, sure = too_sure
    assert expected_calibration_error(labels, honest) < 0.02
    assert expected_calibration_error(labels, sure) > 0.1


def test_the_temperature_undoes_the_factor_on_the_logits(too_sure):
    labels, honest, sure = too_sure
    temperature = fit_temperature(labels, sure)
    assert temperature == pytest.approx(2, abs=0.1)
    cooled = apply_temperature(sure, 2.0)
    np.testing.assert_allclose(cooled, honest, atol=1e-9)
    assert (cooled.argmax(axis=1) == sure.argmax(axis=1)).all()
    # at the lowest loss the derivative is zero: E[logit of the label] = E[mean logit under the model]
    logits, scaled = np.log(sure), apply_temperature(sure, temperature)
    assert logits[np.arange(4_000), labels].mean() == pytest.approx((scaled * logits).sum(axis=1).mean(), abs=1e-3)


@pytest.mark.parametrize("photos", [1, 50, 5_000])
def test_the_temperature_is_bounded_where_every_prediction_is_right_or_none_is(photos):
    sure = np.tile([0.9, 0.1], (photos, 1))
    right, wrong = fit_temperature(np.zeros(photos, int), sure), fit_temperature(np.ones(photos, int), sure)
    assert 0.05 <= right < 1 < wrong <= 20
    assert np.isfinite(apply_temperature(sure, right)).all()
    if photos == 1:
        assert right > 0.7 and wrong < 3, "one photo says little"
    certain = np.tile([1.0, 0.0], (photos, 1))
    assert fit_temperature(np.zeros(photos, int), certain) == pytest.approx(1, abs=1e-3)


def test_probabilities_of_zero_are_fitted_and_applied_with_one_floor():
    extreme = np.array([[1.0, 0.0]] * 99 + [[1.0, 1e-20]])
    labels = np.r_[np.zeros(98, int), 1, 1]
    temperature = fit_temperature(labels, extreme)
    cooled = apply_temperature(extreme, temperature)
    # at the lowest loss the mean confidence is the accuracy; with two floors it would not be
    assert temperature < 20 and cooled.max(axis=1).mean() == pytest.approx(0.98, abs=0.02)
    assert cooled[0, 1] < cooled[99, 1]


def test_unusable_input_is_refused_with_what_was_found():
    with pytest.raises(ValueError, match="one row of probabilities per photo"):
        reliability([0, 1], [[1.0, 0.0]])
    with pytest.raises(ValueError, match="one column per class"):
        expected_calibration_error([0, 1], [[0.4], [0.7]])
