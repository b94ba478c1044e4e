"""The ranking by features: wrong labels and strangers first, better with reviews, no listing its own witness."""

import numpy as np
import pytest

from carspotter.curation.appearance import describe_images
from carspotter.curation.ranking import rank_photos
from carspotter.photos.table import kind_of


def crowd(seed=0, good=100, mislabelled=8, strangers=16):
    """Two classes of points, some under the other's label, and a third crowd listed now as this class, now as that."""
    rng = np.random.default_rng(seed)
    centres = 2.5 * rng.normal(size=(3, 32))
    kinds = np.repeat([0, 1, 0, 2], [good, good, mislabelled, strangers])
    labels = np.array(["swift", "wagonr"])[np.where(kinds == 2, np.arange(len(kinds)) % 2, kinds)]
    labels[2 * good : 2 * good + mislabelled] = "wagonr"
    junk = np.arange(len(kinds)) >= 2 * good
    return centres[kinds] + rng.normal(size=(len(kinds), 32)), labels, junk


def share_found(scores, junk, share=0.15):
    worst = np.argsort(-scores, kind="stable")[: round(share * len(scores))]
    return junk[worst].sum() / junk.sum()


def alone(labels):
    return [f"photo {n}" for n in range(len(labels))]


def test_wrong_labels_and_strangers_come_first_with_a_reason():
    features, labels, junk = crowd()
    ranked = rank_photos(features, labels, alone(labels))
    assert share_found(ranked["score"].to_numpy(), junk) >= 0.95
    assert ranked["score"].between(0, 1).all() and (ranked["score"] >= 0.5).mean() == pytest.approx(0.2, abs=0.02)
    assert ((ranked["reason"] == "") == (ranked["score"] < 0.5)).all()
    mislabelled = ranked.iloc[200:208]
    assert set(mislabelled["reason"].map(kind_of)) <= {"another model", "unlike its class", "like rejects"}
    assert mislabelled["reason"].str.contains("the other photos say swift").sum() >= 4


def test_what_stands_apart_from_its_listing_rises_and_says_so():
    features, labels, _ = crowd(mislabelled=0, strangers=0)
    apart = np.random.default_rng(1).uniform(0, 0.9, (len(labels), 3))
    before = rank_photos(features, labels, alone(labels), apart=apart)["score"]
    apart[[5, 150]] = 1.0
    after = rank_photos(features, labels, alone(labels), apart=apart)
    assert (after["score"] > before)[[5, 150]].all()
    assert kind_of(after["reason"][5]) == "unlike its listing"
    unknown = rank_photos(features, labels, alone(labels), apart=np.full_like(apart, np.nan))
    np.testing.assert_array_equal(unknown["score"], rank_photos(features, labels, alone(labels))["score"])


def test_the_most_telling_sign_is_enough_alone():
    features, labels, _ = crowd(mislabelled=0)
    apart = np.random.default_rng(1).uniform(0, 0.9, (len(labels), 3))
    odd = np.isin(np.arange(len(labels)), [5, 150])
    shares = []
    for column in (0, 2):
        signs = apart.copy()
        signs[odd, column] = 1.0
        ranked = rank_photos(features, labels, alone(labels), apart=signs)
        shares.append(share_found(ranked["score"].to_numpy(), odd, 0.1))
    assert shares == [1.0, 0.0]


def test_what_a_trained_model_doubts_rises_without_any_listing():
    features, labels, _ = crowd(mislabelled=0, strangers=0)
    doubts = np.random.default_rng(1).uniform(0, 0.3, len(labels))
    before = rank_photos(features, labels, alone(labels), doubts=doubts)["score"]
    doubts[[5, 150]] = 0.99
    assert (rank_photos(features, labels, alone(labels), doubts=doubts)["score"] > before)[[5, 150]].all()


def test_one_class_alone_is_ranked_by_distance():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(2, 1, (60, 16)), rng.normal(0, 1, (3, 16)) - 2])
    ranked = rank_photos(features, ["swift"] * 63, alone(features))
    assert set(ranked["score"].nlargest(3).index) == {60, 61, 62}
    assert kind_of(ranked.loc[60, "reason"]) == "unlike its class"


def test_a_listing_does_not_vouch_for_itself():
    # Many photos of one stranger are each other's nearest neighbours; seen as one group they stand alone.
    rng = np.random.default_rng(1)
    stranger = rng.normal(size=16) * 3
    features = np.concatenate([rng.normal(size=(80, 16)) + 2, stranger + 0.1 * rng.normal(size=(16, 16))])
    labels = ["swift"] * 96
    one_listing = [*alone(range(80)), *["listing"] * 16]
    together = rank_photos(features, labels, one_listing)["score"].to_numpy()
    apart = rank_photos(features, labels, alone(labels))["score"].to_numpy()
    assert together[80:].mean() > max(apart[80:].mean() + 0.2, together[:80].mean() + 0.2)


def test_reviews_teach_what_a_reject_looks_like():
    # Half of the class is fine, half is what nobody wants; no ranking can know which before somebody says so.
    rng = np.random.default_rng(2)
    wanted = rng.normal(size=(120, 16)) + 1.5
    unwanted = rng.normal(size=(60, 16)) - 1.5
    features, junk = np.concatenate([wanted, unwanted]), np.repeat([False, True], [120, 60])
    labels = np.array(["swift", "wagonr"] * 90)
    before = rank_photos(features, labels, alone(labels))["score"].to_numpy()
    said = np.full(180, np.nan)
    said[[*range(20), *range(120, 140)]] = [0] * 20 + [1] * 20
    after = rank_photos(features, labels, alone(labels), said)["score"].to_numpy()
    unseen = np.isnan(said)
    found_before, found_after = (share_found(score[unseen], junk[unseen], 0.3) for score in (before, after))
    assert found_after >= 0.75 and found_after > found_before + 0.2


def test_too_few_photos_or_groups_are_not_ranked():
    features = np.random.default_rng(0).normal(size=(40, 4))
    assert not rank_photos(features[:20], ["swift"] * 20, alone(range(20)))["score"].any()
    assert not rank_photos(features, ["swift"] * 40, ["one listing"] * 40)["score"].any()


def test_features_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="nan or infinite"):
        rank_photos(np.full((40, 3), np.nan), ["swift"] * 40, alone(range(40)))


def test_appearance_tells_outlines_and_colours_apart():
    rng = np.random.default_rng(0)
    upright = np.zeros((4, 96, 96, 3), np.uint8)
    upright[:, :, ::12] = 255
    lying = upright.transpose(0, 2, 1, 3)
    red = upright.copy()
    red[..., 1:] //= 2
    images = np.concatenate([upright, lying, red])
    images = (images + rng.integers(0, 40, images.shape)).clip(0, 255).astype(np.uint8)
    features = describe_images(images, show_progress=False)
    assert features.shape == (12, 672) and features.dtype == np.float32 and np.isfinite(features).all()
    within = np.linalg.norm(features[0] - features[1])
    assert np.linalg.norm(features[0] - features[4]) > 1.3 * within
    assert np.linalg.norm(features[0] - features[8]) > 1.1 * within


def test_a_photo_at_home_in_another_listing_is_ranked_worse_for_its_own():
    rng = np.random.default_rng(0)
    listings = np.repeat([f"car {n}" for n in range(16)], 6)
    labels = np.repeat(["swift", "wagonr"], 48)
    centres = np.repeat(rng.normal(size=(16, 40)), 6, axis=0) + 2 * (labels == "swift")[:, None]
    features = centres + rng.normal(0, 0.3, (96, 40))
    features[8] = centres[20] + rng.normal(0, 0.3, 40)  # near its class, for another listing of the model looks so
    places = [
        rank_photos(features, labels, listings, listings=known)["score"].rank(ascending=False)[8]
        for known in (None, listings)
    ]
    assert places[1] < places[0] - 30
