import numpy as np
import pandas as pd
import pytest
from scipy import special
from sklearn.calibration import calibration_curve

from carspotter.evidence.bias_variance import (
    apply_temperature,
    decompose,
    diagnose,
    expected_calibration_error,
    fit_temperature,
    generalisation_gap,
    overfitting_start,
    reliability,
)
from carspotter.evidence.comparison import Interval, independent_interval


def test_the_decomposition_of_a_case_done_by_hand():
    labels = ["swift", "swift", "wagonr", "wagonr"]
    predictions = [
        ["swift", "swift", "swift", "wagonr"],
        ["swift", "wagonr", "swift", "wagonr"],
        ["swift", "swift", "wagonr", "wagonr"],
        ["swift", "swift", "swift", "swift"],
        ["swift", "wagonr", "swift", "wagonr"],
    ]
    # photo by photo: always right; right 3 of 5; wrong 4 of 5, the only biased one; right 4 of 5
    result = decompose(labels, predictions, range(4))
    assert result.error == pytest.approx((0 + 2 / 5 + 4 / 5 + 1 / 5) / 4)
    assert result.bias.estimate == pytest.approx(1 / 4)
    assert result.unbiased_variance == pytest.approx((2 / 5 + 1 / 5) / 4)
    assert result.biased_variance == pytest.approx((1 / 5) / 4)
    assert result.bias.low < 0.25 < result.bias.high


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_bias_and_variance_add_up_to_the_error_for_any_number_of_classes(classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=300)
    predictions = np.where(rng.random((9, 300)) < rng.random(300), labels, rng.integers(classes, size=(9, 300)))
    result = decompose(labels, predictions, np.arange(300) // 5)
    assert result.error == pytest.approx(np.mean(predictions != labels))
    assert result.bias.estimate + result.variance == pytest.approx(result.error)
    if classes == 2:  # Domingos' own form for two classes: bias + (1 - 2·bias) × variance, photo by photo
        majority = predictions.mean(axis=0) > 0.5
        variance = (predictions != majority).mean(axis=0)
        wrong = majority != labels
        assert np.mean(wrong + (1 - 2 * wrong) * variance) == pytest.approx(result.bias.estimate + result.variance)


def test_models_that_agree_have_no_variance_and_models_that_toss_coins_have_no_bias_to_speak_of():
    labels = np.zeros(400, int)
    same = np.repeat(np.random.default_rng(0).integers(2, size=(1, 400)), 5, axis=0)
    assert decompose(labels, same, range(400)).variance == 0
    noisy = (np.random.default_rng(1).random((51, 400)) < 0.2).astype(int)
    result = decompose(labels, noisy, range(400))
    assert result.bias.estimate == 0
    assert result.variance == pytest.approx(0.2, abs=0.01)


def test_the_gap_is_newcombes_example():
    # Newcombe 1998, table II, method 10: 56/70 against 48/80 gives .0524 to .3339
    gap = generalisation_gap(independent_interval(np.arange(70) < 56), independent_interval(np.arange(80) < 48))
    assert gap.estimate == pytest.approx(0.2)
    assert (gap.low, gap.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_a_bare_training_accuracy_leaves_the_validation_interval_turned_round():
    gap = generalisation_gap(0.99, Interval(0.9, 0.85, 0.93, 200, 40))
    assert (gap.low, gap.estimate, gap.high) == (pytest.approx(0.06), pytest.approx(0.09), pytest.approx(0.14))


def history(validation, training=None):
    epochs = np.arange(1, len(validation) + 1)
    training = np.exp(-epochs / 10) if training is None else training
    return pd.DataFrame({"epoch": epochs, "train_loss": training, "validation_loss": validation})


def test_overfitting_starts_where_validation_loss_turns_while_training_loss_falls():
    epochs = np.arange(1, 41)
    noise = np.random.default_rng(2).normal(0, 0.01, 40)
    turning = 0.3 + 0.0006 * (epochs - 15) ** 2 + noise
    assert abs(overfitting_start(history(turning)) - 15) <= 3
    falling = 0.3 + np.exp(-epochs / 10) + noise
    assert overfitting_start(history(falling)) is None
    level = 0.3 + noise
    assert overfitting_start(history(level)) is None
    diverging = 0.3 + 0.0006 * (epochs - 15) ** 2
    assert overfitting_start(history(diverging, training=diverging)) is None
    assert overfitting_start(history(turning[:3])) is None


@pytest.mark.parametrize(
    ("training", "validation", "says"),
    [
        (0.999, (0.88, 0.85, 0.90), "variance, a gap of 11.9%, overfitting from epoch 12; next, more photos"),
        (0.80, (0.78, 0.75, 0.81), "bias, as it lacks 17.0% even on what it has seen; next, a larger"),
        (0.97, (0.95, 0.90, 0.98), "neither bias nor variance is shown"),
        (0.99, (0.975, 0.95, 0.99), "seems to reach 97%, but its interval does not; next, more validation photos"),
        (0.999, (0.985, 0.975, 0.99), "good enough"),
    ],
)
def test_each_experiment_gets_a_plain_sentence(training, validation, says):
    sentence = diagnose("baseline_cnn", training, Interval(*validation, 800, 130), overfits_from=12)
    assert sentence.startswith(f"baseline_cnn names {training:.1%} of the training and {validation[0]:.1%}")
    assert says in sentence


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


def test_unusable_input_is_refused_with_what_was_found():
    with pytest.raises(ValueError, match="three or more models"):
        decompose([0, 1], [[0, 1], [0, 1]], [0, 1])
    with pytest.raises(ValueError, match="a row of probabilities per photo"):
        reliability([0, 1], [[1.0, 0.0]])
    with pytest.raises(ValueError, match="one column per class"):
        expected_calibration_error([0, 1], [[0.4], [0.7]])
