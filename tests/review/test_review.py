"""The review page: decisions, agreement, audit and quiz, and what the server lets nobody do."""

import http.client
import json
import os
import shutil
import threading
from urllib.parse import urlsplit

import pandas as pd
import pytest
from PIL import Image, ImageDraw

from carspotter.curation import reviews as decisions
from carspotter.curation.curate import COLUMNS, judge_photos, write_curation
from carspotter.paths import Study
from carspotter.photos.importing import import_folder
from carspotter.photos.table import read_photos
from carspotter_review import session as review
from carspotter_review.server import ReviewServer, serve_reviews


def draw_photo(file, number):
    image = Image.new("RGB", (320, 240), (40 + number * 7 % 200, 90, 140))
    ImageDraw.Draw(image).text((120, 100), str(number), fill="white", font_size=60)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """24 photos of two classes, 3 per listing; scores fall with the photo's place in the table."""
    folder = tmp_path_factory.mktemp("collected")
    for number in range(24):
        label = ("swift", "wagonr")[number % 2]
        draw_photo(folder / "in" / label / f"{label[0]}{number // 6}__{number:02d}.png", number)
    study = Study("sample", folder / "data", folder / "results")
    import_folder(study.data, folder / "in", show_progress=False)
    table = read_photos(study.data)[["sha256", "label"]]
    table[["verdict", "reason", "duplicate_cluster", "car", "decided_by"]] = ["keep", "", "", "", "machine"]
    table["score"] = [1 - n / 24 for n in range(24)]
    table.loc[:3, "reason"] = "too dark: mean brightness 20 of 255"
    table.loc[5, ["verdict", "reason"]] = ["reject", "duplicate: the same shot as another"]
    write_curation(study, table[COLUMNS])
    return study.data


@pytest.fixture
def study(collected, tmp_path):
    shutil.copytree(collected, tmp_path / "data")
    return Study("sample", tmp_path / "data", tmp_path / "results")


def write_splits(study, sides):
    """`sides`: the side of each photo, in the order of hashes; test labels are blank, as in the real file."""
    photos = read_photos(study.data)
    splits = pd.DataFrame({"sha256": photos["sha256"], "label": photos["label"], "split": sides})
    splits["group"] = [listings[0] for listings in photos["listings"]]
    splits.loc[splits["split"] == "test", "label"] = ""
    study.folder.mkdir(parents=True)
    splits[["sha256", "label", "group", "split"]].to_csv(study.splits, index=False)


def keep(photo, label=None):
    return {"sha256": photo["sha256"], "verdict": "keep", "label": label or photo["label"], "reason": None}


def reject(photo, reason="interior"):
    return {"sha256": photo["sha256"], "verdict": "reject", "label": photo["label"], "reason": reason}


def photos_of(session, **filters):
    return [session.describe(number) for number in session.list_photos(**filters)]


# Decisions


def test_queue_is_worst_first_and_leaves_out_what_the_machine_rejected(study):
    session = review.Session(study, "Asha")
    photos = photos_of(session)
    assert [photo["score"] for photo in photos] == sorted((photo["score"] for photo in photos), reverse=True)
    assert len(photos) == 23
    assert [photo["kind"] for photo in photos_of(session, show="machine")] == ["duplicate"]
    assert photos[0]["sentence"] == "mean brightness 20 of 255"


def test_filters_by_reason_class_and_what_is_left(study):
    session = review.Session(study, "Asha")
    dark = photos_of(session, kind="too dark")
    assert len(dark) == 4
    assert {photo["label"] for photo in photos_of(session, label="wagonr")} == {"wagonr"}
    session.decide(keep(dark[0]))
    assert len(session.list_photos(kind="too dark")) == 3
    assert [photo["sha256"] for photo in photos_of(session, show="decided")] == [dark[0]["sha256"]]
    assert dict(session.state()["filters"]["kind"]) == {"": 19, "too dark": 3}


def test_every_decision_is_one_line_in_the_file_before_the_answer(study):
    session = review.Session(study, "Asha")
    photo = photos_of(session)[0]
    session.decide(reject(photo, "close-up"))
    (line,) = map(json.loads, study.reviews.read_text().splitlines())
    assert line.pop("time").endswith("+00:00")
    assert line == {**reject(photo, "close-up"), "reviewer": "Asha"}


def test_undo_appends_a_line_and_goes_back_through_earlier_sessions(study):
    session = review.Session(study, "Asha")
    first, second = photos_of(session)[:2]
    session.decide(keep(first))
    session.decide(reject(second))
    later = review.Session(study, "Asha")
    assert later.describe(later.undo()["undone"])["sha256"] == second["sha256"]
    assert later.describe(later.undo()["undone"])["sha256"] == first["sha256"]
    assert later.undo()["undone"] is None
    assert [json.loads(line)["verdict"] for line in study.reviews.read_text().splitlines()] == [
        "keep",
        "reject",
        None,
        None,
    ]
    assert decisions.read_reviews(study.data).empty


def test_a_new_decision_replaces_the_old_one_and_becomes_the_one_that_undo_takes_back(study):
    session = review.Session(study, "Asha")
    first, second = photos_of(session)[:2]
    for decision in (keep(first), keep(second), reject(first)):
        session.decide(decision)
    reviews = decisions.read_reviews(study.data)
    assert reviews["sha256"].tolist() == [second["sha256"], first["sha256"]]
    assert reviews["verdict"].tolist() == ["keep", "reject"]
    assert session.describe(session.undo()["undone"])["sha256"] == first["sha256"]


def test_a_line_torn_by_a_kill_costs_that_line_only(study):
    session = review.Session(study, "Asha")
    first, second = photos_of(session)[:2]
    session.decide(keep(first))
    with open(study.reviews, "a") as log:
        log.write('{"sha256": "ab')
    again = review.Session(study, "Asha")
    assert again.state()["decided"] == 1
    again.decide(keep(second))
    assert len(decisions.read_reviews(study.data)) == 2


def test_many_threads_lose_no_decision(study):
    session = review.Session(study, "Asha")
    photos = photos_of(session)
    threads = [threading.Thread(target=session.decide, args=(keep(photo),)) for photo in photos]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(decisions.read_reviews(study.data)["sha256"]) == {photo["sha256"] for photo in photos}


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"sha256": "0" * 64}, "not a photo of this queue"),
        ({"verdict": "maybe"}, "neither keep nor reject"),
        ({"verdict": "reject"}, "reason None does not go with reject"),
        ({"reason": "interior"}, "does not go with keep"),
        ({"label": "alto"}, "'alto' is not one of"),
    ],
    ids=["unknown photo", "unknown verdict", "reject without a reason", "keep with a reason", "unknown label"],
)
def test_a_decision_that_makes_no_sense_is_refused_and_not_written(study, change, complaint):
    session = review.Session(study, "Asha")
    with pytest.raises(ValueError, match=complaint):
        session.decide(keep(photos_of(session)[0]) | change)
    assert not study.reviews.exists()


def test_reviewers_do_not_see_what_the_other_one_decided(study):
    table = review.read_curation(study)
    table.loc[0, ["verdict", "reason", "score", "decided_by"]] = ["reject", "reviewed: interior", 1.0, "Asha"]
    claimed = table.loc[1, "label"]
    table.loc[1, ["label", "reason", "decided_by"]] = ["baleno", "reviewed: keep", "Asha"]
    write_curation(study, table)
    session = review.Session(study, "Binod")
    photo = next(photo for photo in photos_of(session) if photo["sha256"] == table["sha256"][0])
    assert (photo["kind"], photo["sentence"], photo["decision"]) == ("", "", None)
    relabelled = next(photo for photo in photos_of(session) if photo["sha256"] == table["sha256"][1])
    assert relabelled["label"] == claimed
    shown_as_good = {
        sha256
        for other in photos_of(session)
        for row in other["near"]
        if row["title"].startswith("good")
        for sha256 in row["photos"]
    }
    assert shown_as_good and table["sha256"][0] not in shown_as_good


def test_decisions_reach_the_next_curation(study):
    session = review.Session(study, "Asha")
    first, second = photos_of(session)[:2]
    other = {"swift": "wagonr", "wagonr": "swift"}[second["label"]]
    session.decide(reject(first, "close-up"))
    session.decide(keep(second, other))
    table = judge_photos(study.data, read_photos(study.data), show_progress=False).set_index("sha256")
    assert table.loc[first["sha256"], ["verdict", "decided_by"]].tolist() == ["reject", "Asha"]
    assert table.loc[second["sha256"], ["verdict", "label"]].tolist() == ["keep", other]


def test_a_reviewer_needs_a_name(study):
    with pytest.raises(ValueError, match="needs a name"):
        review.Session(study, " ")


def test_neighbours_are_the_same_listing_the_same_cluster_and_the_nearest_by_features(study):
    table = review.read_curation(study)
    table.loc[[7, 11], "duplicate_cluster"] = "c0ffee"
    write_curation(study, table)
    features = pd.DataFrame([[n, 1.0] for n in range(24)], index=table["sha256"])
    session = review.Session(study, "Asha", features=features)
    number = session.row[table["sha256"][7]]
    photo = session.describe(number)
    rows = {row["title"]: row["photos"] for row in photo["near"]}
    assert rows["look the same"] == [table["sha256"][11]]
    listing = {photo["sha256"]: photo["listing"] for photo in session.photos}
    assert {listing[sha256] for sha256 in rows["same listing"]} == {photo["listing"]}
    assert photo["sha256"] not in rows["same listing"]
    labels = dict(zip(table["sha256"], table["label"], strict=True))
    nearest = rows[f"nearest {photo['label']}"]
    assert {labels[sha256] for sha256 in nearest} == {photo["label"]}
    # cosine to (7, 1): the direction (n, 1) hardly turns any more for large n, so farther numbers beat small ones
    assert table.index[table["sha256"] == nearest[0]][0] in (6, 8, 9)


# Agreement


def test_agreement_counts_photos_that_both_decided(study):
    asha, binod = review.Session(study, "Asha"), review.Session(study, "Binod")
    photos = photos_of(asha)[:6]
    for photo in photos:
        asha.decide(keep(photo))
    for photo, decision in zip(photos[:4], (keep, keep, reject, keep), strict=True):
        binod.decide(decision(photo))
    other = {"swift": "wagonr", "wagonr": "swift"}
    binod.decide(keep(photos[0], other[photos[0]["label"]]))
    summary = asha.summarize()
    assert "agree on 2 of 4 photos" in dict(summary["figures"])["Asha and Binod"]
    assert len(summary["sections"][0]["photos"]) == 2


# Audit


def test_audit_draws_kept_photos_only_and_stays_the_same_after_its_own_rejects(study):
    drawn = review.draw_audit(study, 10, seed=3)
    assert len(drawn) == 10 and set(drawn["verdict"]) == {"keep"}
    assert drawn["sha256"].tolist() != review.draw_audit(study, 10, seed=4)["sha256"].tolist()
    session = review.Session(study, "Asha", audit=10, seed=3)
    session.decide(reject(photos_of(session)[0]))
    table = review.read_curation(study)
    table.loc[table["sha256"] == drawn["sha256"][0], "verdict"] = "reject"
    write_curation(study, table)
    assert review.draw_audit(study, 10, seed=3)["sha256"].tolist() == drawn["sha256"].tolist()


def test_audit_hides_the_machines_opinion_and_counts_junk(study):
    session = review.Session(study, "Asha", audit=8)
    photos = photos_of(session)
    assert {(photo["kind"], photo["sentence"], photo["score"]) for photo in photos} == {("", "", None)}
    other = {"swift": "wagonr", "wagonr": "swift"}
    session.decide(reject(photos[0]))
    session.decide(keep(photos[1], other[photos[1]["label"]]))
    session.decide(keep(photos[2]))
    found = review.read_audit(study, 8)
    assert found.junk.tolist() == [True, True, False]
    assert (found.drawn, found.kept) == (8, 23)
    assert len(review.read_audit(study, 8, seed=1).junk) == 0
    assert "66.7% [9.4%, 99.2%], 2 of 3 photos" in str(found)
    # A review outside the audit, of a photo that the audit found fine, changes nothing in its answer.
    review.Session(study, "Asha").decide(reject(photos[2]))
    assert review.read_audit(study, 8).junk.tolist() == [True, True, False]


def test_what_is_undone_in_an_audit_leaves_an_earlier_verdict_standing(study):
    photo = photos_of(review.Session(study, "Asha", audit=1))[0]
    review.Session(study, "Asha").decide(keep(photo))
    audit = review.Session(study, "Asha", audit=1)
    audit.decide(reject(photo))
    assert [audit.undo()["undone"], audit.undo()["undone"]] == [0, None], "the audit's own verdict, and no other"
    assert len(review.read_audit(study, 1).junk) == 0
    assert decisions.read_reviews(study.data)[["sha256", "verdict"]].to_numpy().tolist() == [[photo["sha256"], "keep"]]

    audit.decide(reject(photo))
    later = review.Session(study, "Asha")
    answer = later.undo()
    assert answer["decision"]["verdict"] == "keep", "the page shows what stands again"
    later.undo()
    assert decisions.read_reviews(study.data).empty


def test_a_review_made_before_does_not_count_as_audited(study):
    session = review.Session(study, "Asha")
    for photo in photos_of(session):
        session.decide(keep(photo))
    assert review.Session(study, "Asha", audit=5).state()["decided"] == 0


# Quiz


def test_quiz_asks_about_validation_photos_in_balance_and_never_about_test_photos(study):
    write_splits(study, ["validation", "test", "validation", "train"] * 6)
    drawn = review.draw_quiz(study, 8, seed=1)
    splits = pd.read_csv(study.splits, keep_default_na=False).set_index("sha256")
    assert len(drawn) == 8
    assert set(splits.loc[drawn["sha256"], "split"]) == {"validation"}
    available = splits[splits["split"] == "validation"]["label"].value_counts().min()
    assert drawn["label"].value_counts().min() >= min(4, available)
    groups = splits.loc[splits["split"] == "validation"].groupby("label")["group"].nunique().sum()
    assert drawn["group"].nunique() >= min(8, groups) - 1
    assert drawn.equals(review.draw_quiz(study, 8, seed=1))
    assert drawn["sha256"].tolist() != review.draw_quiz(study, 8, seed=2)["sha256"].tolist()


def test_quiz_tells_the_page_nothing_but_the_photo(study):
    write_splits(study, ["validation"] * 24)
    session = review.Session(study, "Asha", quiz=6)
    assert session.describe(0).keys() == {"number", "sha256", "decision"}
    assert session.state()["filters"] == {}


def test_quiz_answers_are_stored_and_compared_with_the_split(study):
    write_splits(study, ["validation"] * 24)
    session = review.Session(study, "Asha", quiz=6)
    truth = review.draw_quiz(study, 6).set_index("sha256")["label"]
    other = {"swift": "wagonr", "wagonr": "swift"}
    for n, sha256 in enumerate(truth.index):
        session.decide({"sha256": sha256, "label": other[truth[sha256]] if n < 2 else truth[sha256]})
        if n == 4:
            assert [name for name, _ in session.summarize()["figures"]] == ["answered"]
    answers = review.read_quiz(study, "Asha")
    assert answers["correct"].sum() == 4 and len(answers) == 6 and answers["group"].notna().all()
    assert dict(session.summarize()["figures"])["correct"] == "66.7%"
    session.undo()
    assert len(review.read_quiz(study)) == 5
    assert review.read_quiz(study, "Binod").empty
    assert not study.reviews.exists()


def test_quiz_without_validation_photos_says_what_to_do(study):
    write_splits(study, ["train"] * 24)
    with pytest.raises(ValueError, match="run `split` first"):
        review.draw_quiz(study, 5)


# The server


def talk(server, method="GET", path="/", headers=None, body=None):
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    own = {"Host": address.netloc, "Origin": f"http://{address.netloc}", "Content-Type": "application/json"}
    own = {name: value for name, value in (own | (headers or {})).items() if value is not None}
    connection.request(method, path, body=body, headers=own)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, answer.headers


@pytest.fixture
def server(study):
    with serve_reviews(study, "Asha") as server:
        yield server


def test_page_is_served_with_a_policy_that_lets_nothing_else_in(server):
    status, page, headers = talk(server)
    assert status == 200 and b"<title>Carspotter review" in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    nonce = headers["Content-Security-Policy"].split("script-src 'nonce-")[1].split("'")[0]
    assert f'<script nonce="{nonce}">'.encode() in page
    assert b"http://" not in page and b"https://" not in page


def test_photos_come_shrunk_and_without_their_metadata(server, study):
    sha256 = read_photos(study.data)["sha256"][0]
    status, photo, headers = talk(server, path=f"/photo/{sha256}/thumb")
    assert status == 200 and headers["Content-Type"] == "image/jpeg" and photo[:2] == b"\xff\xd8"
    assert b"Exif" not in photo


@pytest.mark.parametrize(
    "path",
    [
        "/photo/../reviews.jsonl/thumb",
        "/photo/%2e%2e%2freviews.jsonl/thumb",
        "/photo//etc/passwd/thumb",
        "/../../etc/passwd",
        "/data/curation.csv",
        "/photo/" + "0" * 64 + "/large",
        "/photo/{sha256}/original",
        "/photo/{sha256}/../../curation.csv",
    ],
)
def test_nothing_is_served_by_path(server, study, path):
    status, content, _ = talk(server, path=path.format(sha256=read_photos(study.data)["sha256"][0]))
    assert status == 404 and b"root:" not in content and b"verdict" not in content


def test_a_forgotten_photo_is_gone(server, study):
    photo = read_photos(study.data).iloc[0]
    (study.data / photo["path"]).unlink()
    assert talk(server, path=f"/photo/{photo['sha256']}/large")[0] == 410


@pytest.mark.parametrize(
    "host, status", [("evil.example", 421), ("", 421), ("[", 400), ("localhost", 200), ("127.0.0.1:9", 200)]
)
def test_only_its_own_names_are_answered(server, host, status):
    assert talk(server, headers={"Host": host})[0] == status


@pytest.mark.parametrize(
    "headers, body, status",
    [
        ({"Origin": "http://evil.example"}, "{}", 403),
        ({"Origin": None}, "{}", 403),
        ({"Origin": "null"}, "{}", 403),
        ({"Content-Type": "text/plain"}, "{}", 415),
        ({}, "x" * 5000, 413),
        ({"Content-Length": "\u00b2"}, "{}", 413),
        ({"Content-Length": "9" * 5000}, "{}", 413),
        ({}, "not json", 400),
        ({}, "[]", 400),
        ({}, '{"sha256": ["a"]}', 400),
        ({}, '{"sha256": {}, "verdict": "keep"}', 400),
    ],
    ids=[
        "other site",
        "no origin",
        "null origin",
        "form",
        "too long",
        "length of another script",
        "length of 5,000 digits",
        "no JSON",
        "a list",
        "list inside",
        "map inside",
    ],
)
def test_a_decision_from_elsewhere_or_out_of_shape_is_refused(server, study, headers, body, status):
    assert talk(server, "POST", "/api/decide", headers, body)[0] == status
    assert not study.reviews.exists()
    assert talk(server)[0] == 200


def test_decide_and_undo_over_http(server, study):
    photo = json.loads(talk(server, path="/api/photos?at=0,1,999,x")[1])[0]
    status, answer, _ = talk(server, "POST", "/api/decide", body=json.dumps(keep(photo)))
    assert status == 200 and json.loads(answer)["state"]["decided"] == 1
    assert len(decisions.read_reviews(study.data)) == 1
    assert json.loads(talk(server, "POST", "/api/undo", body="{}")[1])["undone"] == 0


def test_loopback_needs_no_token_and_other_addresses_do(study):
    with ReviewServer(review.Session(study, "Asha"), "0.0.0.0", 0) as server:
        token = urlsplit(server.url).query.removeprefix("token=")
        assert len(token) >= 32
        for path in ("/", "/api/state", "/?token=wrong", "/?token=%C3%A9"):
            assert talk(server, path=path)[0] == 403
        assert talk(server, "POST", f"/api/undo?token={token}", body="{}")[0] == 403
        assert talk(server, headers={"Cookie": "carspotter=wrong"})[0] == 403
        status, _, headers = talk(server, path=f"/?token={token}")
        assert status == 303 and headers["Location"] == "./" and "HttpOnly" in headers["Set-Cookie"]
        cookie = headers["Set-Cookie"].split(";")[0]
        assert talk(server, headers={"Cookie": f"a=b; {cookie}"})[0] == 200


def test_behind_a_proxy_its_public_name_is_answered_and_the_token_stays_within_the_prefix(study):
    with serve_reviews(study, "Asha", public_url="https://photos.example.org/review") as server:
        assert server.url.startswith("https://photos.example.org/review/?token=")
        asked = {"Host": "photos.example.org", "Cookie": f"carspotter={server.token}"}
        assert talk(server, headers=asked)[0] == 200
        sent_on = talk(server, path=f"/?token={server.token}", headers={"Host": "photos.example.org"})
        assert sent_on[0] == 303 and sent_on[2]["Location"] == "./" and "Path" not in sent_on[2]["Set-Cookie"]
        decision = json.dumps(keep(photos_of(server.session)[0])).encode()
        asked |= {"Content-Type": "application/json"}
        posted = {"method": "POST", "path": "/api/decide", "body": decision}
        assert talk(server, headers=asked | {"Origin": "https://photos.example.org"}, **posted)[0] == 200
        assert talk(server, headers=asked | {"Origin": "https://elsewhere.example.org"}, **posted)[0] == 403


def test_a_link_among_the_stored_photos_serves_nothing_from_outside(server, study, tmp_path):
    (sha256, row) = next(iter(server.session.files.iterrows()))
    stored = study.data / row["path"]
    stored.rename(tmp_path / "elsewhere.png")
    stored.symlink_to(tmp_path / "elsewhere.png")
    assert talk(server, path=f"/photo/{sha256}/thumb")[0] == 410


def test_a_port_that_is_taken_is_named(server, study):
    with pytest.raises(OSError, match=f"port {server.server_port}"):
        serve_reviews(study, "Binod", port=server.server_port)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_reported_and_the_decision_stays_open(server, study):
    photo = json.loads(talk(server, path="/api/photos?at=0")[1])[0]
    server.session.log = type(study.reviews)("/dev/full")
    status, answer, _ = talk(server, "POST", "/api/decide", body=json.dumps(keep(photo)))
    assert status == 507 and b"not saved" in answer
    assert json.loads(talk(server, path="/api/state")[1])["decided"] == 0
