"""The split: exact counts, groups that stay together, photos that never move, and a verification that notices."""

import hashlib
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from generated_photos import encode, scene
from PIL import ImageOps

from carspotter.curation.curate import curate_study
from carspotter.paths import Study
from carspotter.photos.grouping import pick_sizes
from carspotter.photos.importing import import_folder
from carspotter.photos.splitting import read_splits, split_photos, split_study, split_version
from carspotter.photos.table import forget
from carspotter.photos.verification import verify_split

STUDIED = ("train", "validation", "test")


def sha(name):
    return hashlib.sha256(str(name).encode()).hexdigest()


def collection(rows):
    """Make the two tables from rows (name, label, listing, cluster); a site may stand before the listing's colon."""
    photos, curation = [], []
    for name, label, listing, cluster in rows:
        site = listing.partition(":")[0] if listing and ":" in listing else "site"
        listings = ((listing if ":" in listing else f"site:{listing}"),) if listing else ()
        photos.append({"sha256": sha(name), "listings": listings, "sites": (site,)})
        curation.append(
            {
                "sha256": sha(name),
                "label": label,
                "verdict": "keep",
                "reason": "",
                "score": 0.0,
                "duplicate_cluster": cluster or "",
                "car": cluster or "",
                "decided_by": "machine",
            }
        )
    return pd.DataFrame(photos), pd.DataFrame(curation)


def market(photos_per_class, seed=0, labels=("swift", "wagonr"), prefix="", smallest=4, largest=12):
    """Return rows of whole listings, of 4 to 12 photos each, until every class has its number of photos."""
    rng = np.random.default_rng(seed)
    rows = []
    for label in labels:
        left, listing = photos_per_class, 0
        while left:
            size = min(left, int(rng.integers(smallest, largest + 1)))
            rows += [(f"{prefix}{label}-{listing}-{k}", label, f"{prefix}{label}-{listing}", None) for k in range(size)]
            left, listing = left - size, listing + 1
    return rows


def split_of(splits):
    return splits.set_index("sha256")["split"]


def test_four_thousand_balanced_photos_split_exactly():
    photos, curation = collection(market(2000))
    splits = split_photos(photos, curation)
    assert Counter(splits["split"]) == {"train": 2400, "validation": 800, "test": 800}
    per_class = pd.crosstab(splits["label"], splits["split"])
    assert per_class.loc["swift"].to_dict() == {"train": 1200, "validation": 400, "test": 400}
    assert per_class.loc["wagonr"].to_dict() == {"train": 1200, "validation": 400, "test": 400}
    assert (splits.groupby("group")["split"].nunique() == 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_exact_also_with_listings_that_hold_both_classes_and_clusters_across_listings(seed):
    rng = np.random.default_rng(seed)
    rows = market(2000, seed, smallest=1, largest=20)
    swift, wagonr = ([row for row in rows if row[1] == label] for label in ("swift", "wagonr"))
    for _ in range(25):  # a listing of either class is joined to one of the other by a misfiled photo
        name, label, _, cluster = swift[int(rng.integers(2000))]
        rows[rows.index((name, label, _, cluster))] = (name, label, wagonr[int(rng.integers(2000))][2], cluster)
        swift = [row for row in rows if row[1] == "swift"]
    for k in range(60):
        for _ in range(2):
            position = int(rng.integers(4000))
            name, label, listing, _ = rows[position]
            rows[position] = (name, label, listing, f"cluster{k}")
    splits = split_photos(*collection(rows))
    assert Counter(splits["split"]) == {"train": 2400, "validation": 800, "test": 800}
    assert (splits.groupby("group")["split"].nunique() == 1).all()


def test_the_order_of_the_tables_does_not_matter():
    photos, curation = collection(market(200))
    first = split_photos(photos, curation)
    again = split_photos(photos.sample(frac=1, random_state=1), curation.sample(frac=1, random_state=2))
    pd.testing.assert_frame_equal(first, again)


def test_large_and_small_groups_reach_every_side():
    # Groups sorted by their lowest hash would put the large ones first.
    splits = split_photos(*collection(market(3000, smallest=1, largest=20)))
    sizes = splits.groupby(["split", "group"]).size().groupby("split").mean()
    assert sizes.max() / sizes.min() < 1.3


def test_listings_and_clusters_chain_into_one_group():
    rows = market(100) + [
        ("a", "swift", "one", None),
        ("b", "swift", "one", "copy"),
        ("c", "swift", "two", "copy"),
        ("d", "swift", "two", None),
    ]
    splits = split_photos(*collection(rows)).set_index("sha256")
    chained = splits.loc[[sha(name) for name in "abcd"]]
    assert chained["group"].nunique() == 1 and chained["split"].nunique() == 1
    assert (splits["group"] == chained["group"].iloc[0]).sum() == 4


def test_a_surplus_duplicate_takes_no_part_but_still_joins_its_listing():
    rows = market(100) + [
        ("a", "swift", "one", None),
        ("b", "swift", "one", "copy"),
        ("c", "swift", "two", "copy"),
        ("d", "swift", "two", None),
    ]
    photos, curation = collection(rows)
    curation.loc[curation["sha256"] == sha("c"), ["verdict", "reason"]] = ("reject", "duplicate: of b")
    splits = split_photos(photos, curation).set_index("sha256")
    assert sha("c") not in splits.index
    assert splits.loc[sha("a"), "group"] == splits.loc[sha("d"), "group"]


def test_only_kept_photos_of_the_classes_take_part():
    photos, curation = collection(market(60) + market(30, labels=("alto",)))
    curation.loc[:4, "verdict"] = "reject"
    splits = split_photos(photos, curation, classes=["swift", "wagonr"])
    assert set(splits["label"]) == {"swift", "wagonr"} and len(splits) == 115


def test_three_listings_of_a_class_are_enough():
    sizes = {"one": 12, "two": 4, "three": 14}
    rows = market(30) + [(f"{x}{k}", "alto", x, None) for x, size in sizes.items() for k in range(size)]
    alto = split_photos(*collection(rows)).query("label == 'alto'")
    assert set(alto["split"]) == set(STUDIED)


def test_without_listings_every_photo_is_its_own_group():
    rows = [(f"{label}{k}", label, None, None) for label in ("civic", "altima") for k in range(50)]
    splits = split_photos(*collection(rows))
    assert splits["group"].nunique() == 100
    assert Counter(splits["split"]) == {"train": 60, "validation": 20, "test": 20}


def test_added_photos_move_nothing_and_the_shares_hold():
    rows = market(500)
    previous = None
    for step in range(1, 6):
        splits = split_photos(*collection(rows), previous=previous)
        if previous is not None:
            pd.testing.assert_series_equal(split_of(splits)[previous["sha256"]], split_of(previous), check_names=False)
        shares = splits["split"].value_counts(normalize=True)
        assert abs(shares["train"] - 0.6) < 0.01 and abs(shares["test"] - 0.2) < 0.01
        assert abs(shares["validation"] - 0.2) < 0.01
        previous = splits
        rng = np.random.default_rng(step)
        old = [rows[int(k)] for k in rng.integers(len(rows), size=40)]
        # some photos more for listings that are known, and whole new listings
        rows = rows + [(f"more{step}-{k}", row[1], row[2], None) for k, row in enumerate(old)]
        rows += market(60, seed=step, prefix=f"new{step}-")


def test_splitting_again_changes_nothing():
    tables = collection(market(300))
    first = split_photos(*tables)
    pd.testing.assert_frame_equal(split_photos(*tables, previous=first), first)


def sides(rows):
    """Split the rows, and give a kept photo's row of every side beside the split."""
    splits = split_photos(*collection(rows))
    by_hash = {sha(row[0]): row for row in rows}
    return splits, {
        side: by_hash[splits.loc[(splits["split"] == side) & (splits["label"] == "swift"), "sha256"].iloc[0]]
        for side in STUDIED
    }


def test_a_new_photo_joins_the_side_of_its_listing():
    rows = market(100)
    previous, row_of = sides(rows)
    added = rows + [(f"new-{side}", "swift", row[2], None) for side, row in row_of.items()]
    splits = split_of(split_photos(*collection(added), previous=previous))
    for side in STUDIED:
        assert splits[sha(f"new-{side}")] == side


def test_a_photo_that_would_link_two_sides_is_excluded_and_stays_so():
    rows = market(100)
    previous, row_of = sides(rows)
    train, test = row_of["train"], row_of["test"]
    relabelled = [(*row[:3], "copies") if row == test else row for row in rows]
    linking = ("link", "swift", train[2], "copies")
    splits = split_photos(*collection([*relabelled, linking]), previous=previous)
    assert split_of(splits)[sha("link")] == "excluded"
    assert split_of(splits)[sha(train[0])] == "train" and split_of(splits)[sha(test[0])] == "test"
    # The photo that showed the link may go again: once excluded is excluded.
    again = split_photos(*collection([*rows, linking]), previous=splits)
    assert split_of(again)[sha("link")] == "excluded"


def test_a_new_listing_between_two_sides_goes_to_one_and_only_the_linking_photo_is_excluded():
    rows = market(100)
    previous, row_of = sides(rows)
    clustered = [
        (*row[:3], "c-train") if row == row_of["train"] else (*row[:3], "c-test") if row == row_of["test"] else row
        for row in rows
    ]
    new = [("n0", "swift", "fresh", "c-train"), ("n1", "swift", "fresh", "c-test"), ("n2", "swift", "fresh", None)]
    curated = collection([*clustered, *new])
    # copies of what is settled are surplus, whichever is larger
    splits = split_of(split_photos(*curated, previous=previous))
    assert splits[sha("n0")] == splits[sha("n1")] == "excluded"
    assert splits[sha("n2")] in STUDIED


@pytest.mark.parametrize("freeze_test", [False, True])
def test_an_old_photo_that_turns_up_in_a_listing_of_another_side_is_excluded(freeze_test):
    rows = market(100)
    previous, row_of = sides(rows)
    photos, curation = collection(rows)
    seen_again = sha(row_of["train"][0])
    row = photos.index[photos["sha256"] == seen_again][0]
    photos.at[row, "listings"] = tuple(sorted((*photos.at[row, "listings"], f"site:{row_of['test'][2]}")))
    splits = split_of(split_photos(photos, curation, previous=previous, freeze_test=freeze_test))
    assert splits[seen_again] == "excluded"
    others = splits.index != seen_again
    pd.testing.assert_series_equal(splits[others], split_of(previous)[others])


def test_two_old_groups_of_one_side_that_are_joined_later_get_one_name():
    rows = market(100)
    previous = split_photos(*collection(rows))
    training = previous[(previous["split"] == "train") & (previous["label"] == "swift")]
    one, other = training.groupby("group").head(1)["sha256"].iloc[:2]
    by_hash = {sha(row[0]): row for row in rows}
    listing = by_hash[one][2]
    clustered = [(*row[:3], "c") if sha(row[0]) == other else row for row in rows]
    # a surplus copy of a photo in the other group, offered in this one
    photos, curation = collection([*clustered, ("copy", "swift", listing, "c")])
    curation.loc[curation["sha256"] == sha("copy"), ["verdict", "reason"]] = ("reject", "duplicate: of other")
    splits = split_photos(photos, curation, previous=previous).set_index("sha256")
    assert splits.loc[one, "group"] == splits.loc[other, "group"]
    assert splits.loc[one, "group"] == min(previous.set_index("sha256").loc[[one, other], "group"])


def test_a_photo_rejected_later_is_excluded_and_never_comes_back_elsewhere():
    photos, curation = collection(market(100))
    previous = split_photos(photos, curation)
    victim = previous.loc[previous["split"] == "train", "sha256"].iloc[0]
    changed = curation.copy()
    changed.loc[changed["sha256"] == victim, ["verdict", "reason"]] = ("reject", "reviewed: interior")
    splits = split_photos(photos, changed, previous=previous)
    assert split_of(splits)[victim] == "excluded"
    assert split_of(split_photos(photos, curation, previous=splits))[victim] == "excluded"


def test_a_larger_copy_that_comes_later_does_not_push_the_older_photo_out():
    rows = market(100)
    photos, curation = collection(rows)
    previous = split_photos(photos, curation)
    old = previous["sha256"].iloc[0]
    name, label, listing, _ = next(row for row in rows if sha(row[0]) == old)
    copied = [(*row[:3], "c") if row[0] == name else row for row in rows] + [("larger", label, listing, "c")]
    photos, curation = collection(copied)
    curation.loc[curation["sha256"] == old, ["verdict", "reason"]] = ("reject", "duplicate: of larger")
    splits = split_of(split_photos(photos, curation, previous=previous))
    assert splits[old] == split_of(previous)[old] and splits[sha("larger")] == "excluded"


def test_frozen_test_photos_keep_their_place_and_label():
    photos, curation = collection(market(100))
    previous = split_photos(photos, curation)
    tested = previous.loc[previous["split"] == "test", "sha256"].iloc[0]
    label = previous.set_index("sha256").at[tested, "label"]
    curation.loc[curation["sha256"] == tested, ["verdict", "label"]] = ("reject", "alto")
    frozen = split_photos(photos, curation, previous=previous, freeze_test=True).set_index("sha256")
    assert frozen.loc[tested, ["split", "label"]].tolist() == ["test", label]
    assert split_of(split_photos(photos, curation, previous=previous))[tested] == "excluded"


def test_another_site_is_set_apart_and_what_links_to_it_is_excluded():
    rows = market(100) + [(f"far{k}", ("swift", "wagonr")[k % 2], f"hyderabad:{k // 4}", None) for k in range(40)]
    here, there = rows[0], rows[-1]
    rows[0] = (*here[:3], "both")
    rows[-1] = (*there[:3], "both")
    tables = collection(rows)
    splits = split_photos(*tables, shifted_sites=["hyderabad"])
    assert Counter(splits["split"])["shifted"] == 39
    assert split_of(splits)[sha(there[0])] == "excluded" and split_of(splits)[sha(here[0])] in STUDIED
    # The site stays apart when it is not named again, and so do its later photos.
    tables = collection([*rows, ("far-new", "swift", "hyderabad:new", None)])
    assert split_of(split_photos(*tables, previous=splits))[sha("far-new")] == "shifted"


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (market(30), {"classes": ["swift", "alto"]}, "class 'alto' has no kept photos; kept classes: wagonr"),
        (market(30, labels=("swift",)), {}, "two classes or more"),
        (
            market(30) + [("x", "alto", "x1", None), ("y", "alto", "x2", None)],
            {},
            "'alto' has no .* photos: its 2 photos",
        ),
        (market(30), {"shifted_sites": ["delhi"]}, "no photos of site 'delhi'; there are site"),
    ],
    ids=["unknown class", "one class", "too few groups", "unknown site"],
)
def test_a_split_that_cannot_be_made_says_why(rows, options, message):
    with pytest.raises(ValueError, match=message):
        split_photos(*collection(rows), **options)


def test_other_classes_than_before_and_missing_photos_are_refused():
    rows = market(30) + market(30, labels=("alto",))
    previous = split_photos(*collection(rows), classes=["swift", "wagonr"])
    with pytest.raises(ValueError, match="split for swift, wagonr"):
        split_photos(*collection(rows), classes=["swift", "alto"], previous=previous)
    gone = split_of(previous).index[0]
    fewer = [row for row in rows if sha(row[0]) != gone]
    with pytest.raises(ValueError, match=gone[:12]):
        split_photos(*collection(fewer), previous=previous)
    assert split_of(split_photos(*collection(fewer), previous=previous, forgotten=[gone]))[gone] == "excluded"


@pytest.mark.parametrize("wanted", [0, 1, 7, 50, 100, 137])
def test_sizes_add_up_exactly_or_as_near_as_can_be(wanted):
    rng = np.random.default_rng(wanted)
    sizes = rng.integers(1, 9, 40).tolist()
    assert sum(sizes[k] for k in pick_sizes(sizes, wanted)) == wanted
    assert sum([4, 4, 10][k] for k in pick_sizes([4, 4, 10], 9)) in (8, 10)
    assert pick_sizes([], 5) == []


def test_a_side_leaves_the_other_what_it_needs():
    sizes = [9, 9, 9, 9, 9, 5, 5, 5, 4, 4, 4, 3, 3, 2]
    rows = [
        (f"{label}-{car}-{k}", label, f"{label}{car}", None)
        for label in ("civic", "altima")
        for car, size in enumerate(sizes)
        for k in range(size)
    ]
    assert Counter(split_photos(*collection(rows))["split"]) == {"train": 96, "validation": 32, "test": 32}


@pytest.fixture
def study(tmp_path):
    """A study of real files: two classes, listings, one copy across listings; curated, not yet split."""
    folder = tmp_path / "photos"
    for number, label in enumerate(("swift", "wagonr")):
        (folder / label).mkdir(parents=True)
        for k in range(20):
            photo = encode(scene(1000 * number + k, (160, 120)), quality=90)
            (folder / label / f"{label}{k // 2}__{k % 2}.jpg").write_bytes(photo)
    study = Study("sample", tmp_path / "data", tmp_path / "results")
    import_folder(study.data, folder, show_progress=False)
    curate_study(study, show_progress=False)
    return study


def test_sealed_labels_are_blank_in_the_split_and_stand_in_the_sealed_file(study):
    counts = split_study(study).counts
    assert counts.loc["swift"].to_dict() == {"train": 12, "validation": 4, "test": 4}
    splits = read_splits(study)
    assert set(splits.loc[splits["split"] == "test", "label"]) == {""}
    assert set(splits.loc[splits["split"] != "test", "label"]) == {"swift", "wagonr"}
    sealed = pd.read_csv(study.sealed)
    assert sorted(sealed["sha256"]) == sorted(splits.loc[splits["split"] == "test", "sha256"])
    assert Counter(sealed["label"]) == {"swift": 4, "wagonr": 4}
    assert split_version(study) == hashlib.sha256(study.splits.read_bytes()).hexdigest()
    before = study.splits.read_bytes(), study.sealed.read_bytes()
    split_study(study)
    assert (study.splits.read_bytes(), study.sealed.read_bytes()) == before
    report = verify_split(study, show_progress=False)
    assert report.ok and "in two parts of the split" in str(report)


def test_a_forgotten_photo_leaves_the_split(study):
    split_study(study)
    gone = read_splits(study)["sha256"][0]
    forget(study.data, gone)
    split_study(study)
    assert split_of(read_splits(study))[gone] == "excluded"
    assert verify_split(study, show_progress=False).ok


def test_photos_that_were_not_curated_are_refused(study, tmp_path):
    (tmp_path / "photos/swift/new.jpg").write_bytes(encode(scene(77)))
    import_folder(study.data, tmp_path / "photos", show_progress=False)
    with pytest.raises(ValueError, match="1 photos are not curated"):
        split_study(study)


def change(study, sha256, **values):
    splits = read_splits(study)
    splits.loc[splits["sha256"] == sha256, list(values)] = list(values.values())
    splits.to_csv(study.splits, index=False)


def test_verification_finds_a_group_on_two_sides(study):
    split_study(study)
    training = read_splits(study).query("split == 'train'")
    change(study, training["sha256"].iloc[0], split="validation")
    report = verify_split(study, show_progress=False)
    assert any(problem.startswith("group") for problem in report.problems)
    # With the group renamed as well, the listing still tells.
    change(study, training["sha256"].iloc[0], group="elsewhere")
    report = verify_split(study, show_progress=False)
    assert any(problem.startswith("listing") for problem in report.problems)


def test_verification_finds_a_near_duplicate_that_the_tables_hide(study, tmp_path):
    split_study(study)
    splits = read_splits(study)
    trained = splits.query("split == 'train' and label == 'swift'")["sha256"].iloc[0]
    photo_of = {hashlib.sha256(encode(scene(k, (160, 120)), quality=90)).hexdigest(): k for k in range(20)}
    mirrored = encode(ImageOps.mirror(scene(photo_of[trained], (160, 120))), quality=70)
    (tmp_path / "photos/swift/other__0.jpg").write_bytes(mirrored)
    import_folder(study.data, tmp_path / "photos", show_progress=False)
    smuggled = pd.DataFrame([(hashlib.sha256(mirrored).hexdigest(), "swift", "own group", "validation")])
    pd.concat([splits, smuggled.set_axis(splits.columns, axis=1)]).to_csv(study.splits, index=False)
    curate_study(study, show_progress=False)
    report = verify_split(study, show_progress=False)
    assert not report.ok and any("cross: same shot" in problem for problem in report.problems)


def test_verification_finds_an_open_test_label_a_missing_seal_and_a_wrong_label(study):
    split_study(study)
    splits = read_splits(study)
    change(study, splits.query("split == 'test'")["sha256"].iloc[0], label="swift")
    assert any("sealed labels stand open" in p for p in verify_split(study, show_progress=False).problems)
    change(study, splits.query("split == 'train' and label == 'swift'")["sha256"].iloc[0], label="wagonr")
    assert any("differ from curation" in p for p in verify_split(study, show_progress=False).problems)
    study.sealed.unlink()
    assert any("differs from the sealed rows" in p for p in verify_split(study, show_progress=False).problems)


def test_reading_a_split_that_is_not_there_says_what_to_run(study):
    with pytest.raises(FileNotFoundError, match="split --study sample"):
        read_splits(study)


def test_three_groups_are_enough_however_unequal_they_are():
    rows = [
        (f"{label}-{n}", label, f"{label}-{max(0, n - 7)}", None) for label in ("swift", "wagonr") for n in range(10)
    ]
    splits = split_photos(*collection(rows), classes=["swift", "wagonr"])
    for label in ("swift", "wagonr"):
        sides = split_of(splits)[[sha(f"{label}-{n}") for n in range(10)]]
        assert set(sides) == set(STUDIED)


def test_what_a_person_calls_a_duplicate_ties_its_listings():
    rows = market(60)
    for pair in range(6):
        rows += [(f"pair-{pair}-{n}", "swift", f"twin-{pair}-{n % 2}", f"c{pair}" if n < 2 else None) for n in range(8)]
    photos, curation = collection(rows)
    surplus = curation["sha256"].isin([sha(f"pair-{pair}-1") for pair in range(6)])
    curation.loc[surplus, ["verdict", "reason", "decided_by"]] = ["reject", "reviewed: duplicate", "ann"]
    groups = split_photos(photos, curation, classes=["swift", "wagonr"]).set_index("sha256")["group"]
    for pair in range(6):
        assert groups[[sha(f"pair-{pair}-{n}") for n in (0, 2, 3, 4)]].nunique() == 1


def test_a_second_site_that_comes_later_leaves_the_split_and_its_version(tmp_path, study):
    split_study(study)
    before, version = read_splits(study).set_index("sha256")["split"], split_version(study)
    folder = tmp_path / "away"
    for number, label in enumerate(("swift", "wagonr")):
        (folder / label).mkdir(parents=True)
        (folder / label / f"{label}__1.jpg").write_bytes(encode(scene(7000 + number, (160, 120)), quality=90))
    import_folder(study.data, folder, site="away", show_progress=False)
    curate_study(study, show_progress=False)
    split_study(study, shifted_sites=["away"])
    after = read_splits(study).set_index("sha256")["split"]
    assert Counter(after)["shifted"] == 2 and after[before.index].equals(before)
    assert split_version(study) == version
    table = read_splits(study)
    moved = table["split"].mask(table["sha256"] == before.index[before == "train"][0], "validation")
    table.assign(split=moved).to_csv(study.splits, index=False, lineterminator="\n")
    assert split_version(study) != version


def test_a_photo_that_both_sites_show_sets_no_site_apart():
    rows = [*market(40), *market(20, seed=1, prefix="away:")]
    photos, curation = collection(rows)
    before = split_photos(photos, curation, classes=["swift", "wagonr"], shifted_sites=["away"])
    shifted = before.loc[before["split"] == "shifted", "sha256"].iloc[0]
    more, more_curation = collection([*rows, *market(20, seed=2, prefix="new")])
    both = more["sha256"] == shifted
    more.loc[both, "sites"] = pd.Series([("away", "site")], index=more.index[both])
    after = split_photos(more, more_curation, classes=["swift", "wagonr"], previous=before)
    fresh = after[~after["sha256"].isin(before["sha256"])]
    assert len(fresh) and "shifted" not in set(fresh["split"])
