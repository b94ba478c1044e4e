"""Bias or variance: known parts are found again, with few models too, and one sentence says what follows."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from carspotter.evidence.bias_variance import decompose, diagnose, generalisation_gap, overfitting_start
from carspotter.evidence.intervals import Interval


def test_the_decomposition_of_a_case_done_by_hand():
    labels = ["swift", "swift", "wagonr"]
    predictions = [
        ["swift", "swift", "swift"],
        ["swift", "wagonr", "swift"],
        ["swift", "wagonr", "swift"],
    ]
    # photo by photo: always right; wrong 2 of 3, variance (1 − 5/9) / 2 × 3/2 = 1/3; always wrong
    result = decompose(labels, predictions, range(3))
    assert result.error == pytest.approx((0 + 2 / 3 + 1) / 3)
    assert result.variance.estimate == pytest.approx(1 / 9)
    assert result.bias.estimate == pytest.approx((0 + 1 / 3 + 1) / 3)
    assert result.bias.low < 4 / 9 < result.bias.high


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_bias_and_variance_add_up_to_the_error_for_any_number_of_classes(classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=300)
    predictions = np.where(rng.random((9, 300)) < rng.random(300), labels, rng.integers(classes, size=(9, 300)))
    result = decompose(labels, predictions, np.arange(300) // 5)
    assert result.error == pytest.approx(np.mean(predictions != labels))
    assert result.bias.estimate + result.variance.estimate == pytest.approx(result.error)


@pytest.mark.parametrize("models", [3, 5, 20])
@pytest.mark.parametrize("wrong", [0.3, 0.1, "mixed"])
def test_known_bias_and_variance_are_found_however_few_models_there_are(models, wrong):
    # a photo misclassified with probability q by each training has bias q² and variance q (1 − q)
    rng, photos = np.random.default_rng(models), 20_000
    q = rng.choice([0.0, 0.02, 0.5, 1.0], photos) if wrong == "mixed" else np.full(photos, wrong)
    predictions = (rng.random((models, photos)) < q).astype(int)
    result = decompose(np.zeros(photos, int), predictions, np.arange(photos))
    assert result.bias.estimate == pytest.approx((q**2).mean(), abs=0.012)
    assert result.variance.estimate == pytest.approx((q * (1 - q)).mean(), abs=0.012)
    majority = (predictions.mean(axis=0) > 0.5).mean()  # what a main prediction would call bias
    if models == 3 and wrong == 0.3:
        assert majority > 2 * result.bias.estimate


@pytest.mark.slow
def test_the_interval_of_the_bias_covers_it():
    rng, covered = np.random.default_rng(2), 0
    for _ in range(200):
        q = rng.beta(0.5, 1.5, 80).repeat(5)
        predictions = (rng.random((5, 400)) < q).astype(int)
        found = decompose(np.zeros(400, int), predictions, np.arange(80).repeat(5)).bias
        covered += found.low <= 0.0625 + 0.0625 <= found.high  # E q² of that distribution: .25² + variance .0625
    assert covered >= 182


def test_models_that_agree_have_no_variance():
    same = np.repeat(np.random.default_rng(0).integers(2, size=(1, 400)), 5, axis=0)
    assert decompose(np.zeros(400, int), same, range(400)).variance.estimate == 0


def test_the_gap_is_newcombes_example():
    # Newcombe 1998, table II, method 10: 56/70 against 48/80 gives .0524 to .3339
    sides = [stats.binomtest(k, n).proportion_ci(method="wilson") for k, n in ((56, 70), (48, 80))]
    gap = generalisation_gap(
        *(Interval(p, side.low, side.high, 9, 9) for p, side in zip((0.8, 0.6), sides, strict=True))
    )
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


def test_a_rise_in_the_last_epochs_is_no_overfitting_yet():
    epochs = np.arange(1, 101)
    noise = np.random.default_rng(3).normal(0, 0.005, 100)
    late = 0.3 + np.exp(-epochs / 10) + np.maximum(0, epochs - 95) * 0.02 + noise
    assert overfitting_start(history(late)) is None
    assert 85 <= overfitting_start(history(np.r_[late, late[-1] + 0.02 * np.arange(10)])) <= 95


@pytest.mark.parametrize(
    ("training", "validation", "says"),
    [
        (0.999, (0.88, 0.85, 0.90), "variance, a gap of 11.9%, overfitting from epoch 12; next, more photos"),
        (0.80, (0.78, 0.75, 0.81), "bias, as it lacks 17.0% even on its training photos; next, a larger"),
        (0.97, (0.95, 0.90, 0.98), "undetermined, as the gap's interval"),
        (0.99, (0.975, 0.95, 0.99), "seems to reach 97%, but its interval does not; next, more validation photos"),
        (0.999, (0.985, 0.975, 0.99), "good enough"),
    ],
)
def test_each_experiment_gets_a_plain_sentence(training, validation, says):
    sentence = diagnose("baseline_cnn", training, Interval(*validation, 800, 130), overfits_from=12)
    assert sentence.startswith(f"baseline_cnn classifies {training:.1%} of the training and {validation[0]:.1%}")
    assert says in sentence


def test_a_pretrained_recipe_is_not_told_to_take_a_pretrained_network():
    validation = Interval(0.956, 0.93, 0.97, 800, 130)
    for training in (0.999, 0.90):
        following = diagnose("mobilenet_features", training, validation).split("next, ")[1]
        assert "pretrained" not in following and "more" in following
        assert "pretrained" in diagnose("baseline_cnn", training, validation)


def test_a_loss_that_climbs_far_is_overfitting_whatever_its_spikes():
    epochs = np.arange(1, 41)
    rng = np.random.default_rng(0)
    validation = np.where(epochs < 12, 0.7 - 0.38 * epochs / 12, 0.32 + 0.2 * (epochs - 12) / 28)
    validation = validation + rng.normal(0, 0.01, 40)
    validation[[5, 17, 23, 31]] += 0.6  # as batch normalisation's running averages give
    start = overfitting_start(history(validation))
    assert start is not None and 9 <= start <= 16


def test_unusable_input_is_refused_with_what_was_found():
    with pytest.raises(ValueError, match="three or more models"):
        decompose([0, 1], [[0, 1], [0, 1]], [0, 1])
    with pytest.raises(ValueError, match="both at one level"):
        generalisation_gap(Interval(0.9, 0.8, 1.0, 9, 9, 0.975), Interval(0.9, 0.8, 1.0, 9, 9))
