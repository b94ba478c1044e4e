"""The server, as a real process: what it answers."""

import asyncio
import html
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
import requests
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from carspotter_check.gate import Limits
from carspotter_check.photo_check import PhotoCheck
from carspotter_check.server import create_app
from tests.check.serving import car, multipart, running, wait_for, write_bundle


def test_a_photo_gets_its_verdict_probabilities_and_the_models_name(server):
    answer = server.check(car("red"), "swift")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["verdict"], body["label"], body["run"], body["photo"]) == (
        "match",
        "swift",
        "colours-by-hand",
        "car.jpg",
    )
    assert body["probabilities"]["swift"] > 0.9 and len(body["version"]) == 12
    assert server.check(car("red"), "wagonr").json()["verdict"] == "other_model"
    assert server.check(car("blue")).json()["verdict"] == "named"


def test_a_batch_answers_in_order_and_an_unreadable_photo_is_one_answer_of_it(server):
    photos = [("a.jpg", car("red")), ("b.jpg", b"<svg/>"), ("c.jpg", car("blue")), ("d.jpg", b"")]
    files = [("photos", photo) for photo in photos]
    answer = requests.post(f"{server.url}/v1/check-batch", files=files, data={"claim": "swift"}, timeout=30)
    answers = answer.json()["answers"]
    assert [a["verdict"] for a in answers] == ["match", "unusable", "other_model", "unusable"]
    assert [a["photo"] for a in answers] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    too_many = requests.post(f"{server.url}/v1/check-batch", files=[("photos", photos[0])] * 21, timeout=30)
    assert too_many.status_code == 422 and "at most 20" in too_many.json()["error"]


def test_the_heat_map_shows_the_part_that_decides(server):
    pixels = np.random.default_rng(0).integers(80, 110, (240, 320, 3)).astype(np.uint8)
    pixels[:, :120, 2] += 140
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    body = server.check(stream.getvalue(), path="/v1/explain").json()
    heat = np.array(body["heat"])
    assert body["label"] == "wagonr" and heat.shape == (8, 8)
    assert heat[:, :2].min() > 0 > heat[:, 5:].max()  # the right side's covers are bluer than it is


def bomb():
    """A PNG of 30,000 × 30,000 white pixels in about a hundred kilobytes."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = 30_000
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes(1 + side // 8) * side, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def sixteen_bit():
    grey = np.random.default_rng(0).integers(0, 65536, (240, 320)).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "PNG")
    return stream.getvalue()


def animated():
    frames = [Image.open(io.BytesIO(car(colour))).quantize() for colour in ("red", "blue")]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


@pytest.mark.parametrize(
    ("photo", "status", "words"),
    [
        (lambda: car("red")[:3000], 422, "cut off"),
        (lambda: b"", 400, "empty"),
        (bomb, 413, "limit"),
        (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "SVG"),
        (lambda: b"<!doctype html><script>alert(1)</script>", 415, "web page"),
        (lambda: b"#!/bin/sh\nrm -rf /\n" * 50, 415, "not a photo"),
        (lambda: car("red", mode="CMYK"), 200, None),
        (sixteen_bit, 200, None),
        (animated, 200, None),
        (lambda: car("red") + b"PK\x03\x04<script>alert(1)</script>", 200, None),
        (lambda: car("red", size=(30, 30), format="PNG"), 422, "too small"),
    ],
    ids=["truncated", "zero bytes", "bomb", "SVG", "HTML", "script", "CMYK", "16 bit", "animated", "polyglot", "tiny"],
)
def test_an_odd_photo_gets_the_right_status_and_a_sentence(server, photo, status, words):
    answer = server.check(photo(), "swift")
    assert answer.status_code == status, answer.text
    if words:
        assert words in answer.json()["error"] and answer.json()["request_id"] == answer.headers["x-request-id"]
    else:
        assert answer.json()["verdict"] in {"match", "other_model", "not_sure"}


@pytest.mark.parametrize(
    ("request_of", "status", "words"),
    [
        ({"json": {"photo": "x"}}, 415, "multipart/form-data"),
        ({"data": b"raw", "headers": {"Content-Type": "image/jpeg"}}, 415, "image/jpeg"),
        ({"files": {"picture": b"x"}}, 422, "'photo'"),
        ({"files": {"photo": b"x"}, "data": {"claim": "nano"}}, 422, "it knows swift, wagonr"),
        ({"data": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, ""),
        ({"data": b"garbage", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, ""),
        ({"data": b"garbage", "headers": {"Content-Type": "multipart/form-data; boundary*=utf-8''x"}}, 400, ""),
        ({"files": {"photo": b"x"}, "data": {"claim": "n" * 10**6}}, 422, "it knows swift, wagonr"),
    ],
    ids=["JSON", "raw body", "missing field", "unknown claim", "no boundary", "garbage", "coded", "long claim"],
)
def test_a_wrong_request_is_refused_with_a_sentence(server, request_of, status, words):
    answer = requests.post(f"{server.url}/v1/check", timeout=30, **request_of)
    assert answer.status_code == status and words in answer.json()["error"] and 0 < len(answer.json()["error"]) < 500


def test_a_50_megabyte_body_is_refused_with_and_without_its_length_announced(server):
    body = car("red") + bytes(50 * 2**20)
    answer = server.check(body)
    assert answer.status_code == 413 and "larger than 10 MB" in answer.json()["error"]

    def chunks():
        yield b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'
        for _ in range(50):
            yield bytes(2**20)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = requests.post(f"{server.url}/v1/check", data=chunks(), headers=headers, timeout=30)
    assert answer.status_code == 413


def test_a_request_id_is_given_back_and_logged_without_the_photo(server):
    answer = server.check(car("red"), "swift", headers={"X-Request-ID": "abc-1"}, name="secret.jpg")
    assert answer.headers["x-request-id"] == "abc-1"
    forged = server.check(car("red"), headers={"X-Request-ID": 'x" , "status": 1'})
    assert re.fullmatch("[0-9a-f]{32}", forged.headers["x-request-id"])
    wait_for(lambda: any(line.get("request_id") == "abc-1" for line in server.lines()))
    line = next(line for line in server.lines() if line.get("request_id") == "abc-1")
    assert line["status"] == 200 and line["verdict"] == "match" and line["ms"] > 0 and line["bytes"] > 1000
    assert "secret" not in server.log.read_text()


def test_health_readiness_model_and_documentation(server):
    assert requests.get(f"{server.url}/healthz", timeout=10).json() == {"status": "alive"}
    assert requests.get(f"{server.url}/readyz", timeout=10).status_code == 200
    assert requests.get(f"{server.url}/v1/model", timeout=10).json()["classes"] == ["swift", "wagonr"]
    documented = requests.get(f"{server.url}/openapi.json", timeout=10).json()
    assert set(documented["paths"]) >= {"/v1/check", "/v1/check-batch", "/v1/explain", "/readyz"}
    assert {"400", "408", "413", "415", "422", "503"} <= set(documented["paths"]["/v1/check"]["post"]["responses"])
    assert requests.get(f"{server.url}/nowhere", timeout=10).json()["error"] == "Not Found: GET /nowhere"


def test_the_page_loads_nothing_from_elsewhere(server):
    page = requests.get(server.url, timeout=10)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("", "/page.js", "/page.css"):
        assert not re.search(
            r"(src|href|url|import|fetch)\W{1,3}(https?:)?//", requests.get(server.url + path, timeout=10).text
        )


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([("photo", ("a.jpg", b"x")), ("photo", ("b.jpg", b"x"))], "2 photos; send one file"),
        ([("photo", ("a.jpg", b"x")), ("clam", (None, "swift"))], "unknown field 'clam'"),
        ([("photo", ("a.jpg", b"x")), ("claim", (None, "swift")), ("claim", (None, "wagonr"))], "is there 2 times"),
        ([("photo", ("a.jpg", b"x")), ("claim", ("c.txt", "swift"))], "'claim' as a file"),
        ([("photo", ("a.jpg", b"x")), ("claim", (None, "Swift "))], "it knows swift, wagonr"),
    ],
)
def test_a_form_that_is_not_understood_is_refused_and_never_half_read(server, parts, words):
    answer = requests.post(f"{server.url}/v1/check", files=parts, timeout=30)
    assert answer.status_code == 422 and words in answer.json()["error"]


def test_a_claim_in_the_address_and_a_packed_body_are_refused(server):
    photo = {"photo": ("a.jpg", car("red"))}
    asked = requests.post(f"{server.url}/v1/check?claim=swift", files=photo, timeout=30)
    assert asked.status_code == 422 and "as a form field" in asked.json()["error"]
    packed = server.check(car("red"), headers={"Content-Encoding": "gzip"})
    assert packed.status_code == 415 and "Content-Encoding" in packed.json()["error"]


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="photo"',
        b'form-data; name=photo; filename=""',
        b"form-data; name=\"photo\"; filename*=UTF-8''caf%C3%A9.jpg",
    ],
)
def test_a_photo_needs_no_file_name(server, disposition):
    body = b"--x\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + car("red") + b"\r\n--x--\r\n"
    headers = {"Content-Type": 'Multipart/Form-Data; charset=utf-8; boundary="x"'}
    answer = requests.post(f"{server.url}/v1/check", data=body, headers=headers, timeout=30)
    assert answer.status_code == 200 and answer.json()["verdict"] == "named"


def test_a_form_of_a_hundred_thousand_parts_is_refused_at_once(server):
    body = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n" * 100_000 + b"--x--\r\n"
    started = time.monotonic()
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = requests.post(f"{server.url}/v1/check", data=body, headers=headers, timeout=30)
    assert answer.status_code == 400 and "parts" in answer.json()["error"] and time.monotonic() - started < 5


def test_photos_of_one_car_get_one_verdict(server):
    photos = [("a.jpg", car("red")), ("b.jpg", b"<svg/>"), ("c.jpg", car("red", size=(400, 300)))]
    files = [("photos", photo) for photo in photos]
    answer = requests.post(f"{server.url}/v1/listing", files=files, data={"claim": "swift"}, timeout=30).json()
    assert (answer["verdict"], answer["label"], answer["unusable"]) == ("match", "swift", ["b.jpg"])
    assert sorted(answer["decided"]) == ["a.jpg", "c.jpg"] and answer["probability"] > 0.9
    assert [one["photo"] for one in answer["answers"]] == ["a.jpg", "b.jpg", "c.jpg"]
    twice = requests.post(f"{server.url}/v1/listing", files=files[:1] * 2 + files[1:2] * 2, timeout=30).json()
    assert (twice["probability"], len(twice["unusable"])) == (twice["answers"][0]["probabilities"]["swift"], 3)
    assert [one["reason"].startswith("the same photo as a.jpg") for one in twice["answers"]] == [
        False,
        True,
        False,
        False,
    ]
    nothing = requests.post(f"{server.url}/v1/listing", files=files[1:2], timeout=30).json()
    assert nothing["verdict"] == "unusable" and nothing["probability"] is None


def test_head_metrics_and_the_page_of_the_interface(server):
    head = requests.head(f"{server.url}/healthz", timeout=10)
    assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 0
    server.check(car("red"), "swift")
    numbers = requests.get(f"{server.url}/metrics", timeout=10)
    assert numbers.headers["content-type"].startswith("text/plain")
    assert re.search(r'carspotter_requests_total\{route="/v1/check",status="200"\} \d', numbers.text)
    assert re.search(r'carspotter_verdicts_total\{verdict="match"\} \d', numbers.text)
    page = requests.get(f"{server.url}/docs", timeout=10).text
    assert "POST /v1/listing" in page and "curl -F photo=@car.jpg -F claim=NAME" in page
    wrong = requests.get(f"{server.url}/v1/check", timeout=10)
    assert wrong.status_code == 405 and set(wrong.json()) == {"error", "request_id"}


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl on this machine")
def test_the_examples_on_the_page_of_the_interface_run(server, tmp_path):
    (tmp_path / "car.jpg").write_bytes(car("red"))
    page = requests.get(f"{server.url}/docs", timeout=10).text
    address = server.url.removeprefix("http://")
    examples = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    ran = []
    for example in examples:
        code = html.unescape(example).replace("SERVER", address).replace("=NAME", "=swift").replace('"NAME"', '"swift"')
        command = [sys.executable, "-c", code] if code.startswith("import") else ["sh", "-c", code + " -sSf"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (code, done.stderr)
        ran.append(done.stdout)
    assert len(ran) >= 9 and ran[0].startswith("match") and sum('"verdict":"match"' in text for text in ran) >= 3


def test_answers_on_one_connection_wait_for_no_acknowledgement(server):
    with requests.Session() as session:
        times = []
        for _ in range(30):
            started = time.perf_counter()
            session.get(f"{server.url}/healthz", timeout=10)
            times.append(time.perf_counter() - started)
    assert min(times[15:]) < 0.03  # a delayed acknowledgement takes 0.04, each time once the connection is warm


def test_behind_a_proxy_and_asked_by_another_site(bundle, tmp_path):
    site = "https://cars.example"
    with running(bundle, tmp_path, arguments={"root_path": "cars/", "allow_origins": [site + "/"]}) as server:
        page = requests.get(f"{server.url}/cars", timeout=10)  # as people type it
        assert page.url == f"{server.url}/cars/" and "photo check" in page.text
        for prefix in ("", "/cars"):  # a proxy may strip it
            assert requests.get(f"{server.url}{prefix}/v1/model", timeout=10).status_code == 200
        assert requests.get(f"{server.url}/cars/openapi.json", timeout=10).json()["servers"] == [{"url": "/cars"}]
        for origin, allowed in ((site, site), ("https://elsewhere.example", None)):
            answer = server.check(car("red"), headers={"Origin": origin})
            assert answer.headers.get("access-control-allow-origin") == allowed
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-Request-ID"}
        assert (
            requests.options(f"{server.url}/v1/check", headers={"Origin": site} | asked, timeout=10).status_code == 200
        )
        assert server.log.read_text().splitlines() == [
            line for line in server.log.read_text().splitlines() if line[0] == "{"
        ]


def test_another_site_may_not_ask_unless_it_is_allowed(server):
    answer = server.check(car("red"), headers={"Origin": "https://cars.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_an_address_that_cannot_be_used_is_named(bundle, server):
    from carspotter_check.server import serve

    with pytest.raises(OSError, match=f"port {server.port} of 127.0.0.1 is in use"):
        serve(bundle, port=server.port)
    with pytest.raises(OSError, match=r"of 203\.0\.113\.5 cannot be used .*--host"):  # an address for documentation
        serve(bundle, host="203.0.113.5", port=0)


def test_a_body_in_tiny_pieces_is_refused_and_one_in_small_ones_is_not(server):
    def pieces(size):
        body = multipart(car("red")).partition(b"\r\n\r\n")[2]
        return (body[at : at + size] for at in range(0, len(body), size))

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = requests.post(f"{server.url}/v1/check", data=pieces(100), headers=headers, timeout=30)
    assert answer.status_code == 200
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as tiny:
        head = "POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        tiny.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"1\r\na\r\n" * 2_000)
        assert b" 400 " in tiny.recv(100)


def test_who_asks_before_sending_hears_a_refusal_at_once_and_a_wrong_method_names_the_right_one(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as patient:
        head = "POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        patient.sendall(f"{head}Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n".encode())
        assert b" 413 " in patient.recv(100)
    assert requests.get(f"{server.url}/v1/check", timeout=10).headers["allow"] == "POST"


def test_a_fault_of_ours_is_an_error_in_json_and_logged(tmp_path, caplog):
    check, sent = PhotoCheck.load(write_bundle(tmp_path / "bundle")), []
    check.judge = lambda *_: 1 / 0
    body = multipart(car("red")).partition(b"\r\n\r\n")[2]

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"multipart/form-data; boundary=x"), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": "/v1/check", "query_string": b"", "headers": headers}
    asyncio.run(create_app(check, threads=1)(scope, receive, send))
    head, answer = sent
    assert head["status"] == 500 and "our fault" in json.loads(answer["body"])["error"]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("kept", [True, False])
def test_who_ends_its_own_side_after_the_request_gets_the_answer(server, kept):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        request = multipart(car("red"))
        connection.sendall(request.replace(b"Connection: close\r\n", b"") if kept else request)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"verdict":"named"' in answer


@pytest.mark.parametrize(("path", "most"), [("/v1/check-batch", 5), ("/v1/listing", 5), ("/v1/explain", 9)])
def test_what_takes_longer_than_it_may_is_told_so(tmp_path, path, most):
    check, released, computed = PhotoCheck.load(write_bundle(tmp_path / "bundle")), threading.Event(), []
    predict = check.predict

    def slow(images):
        computed.append(len(images))
        released.wait(0.1)  # each piece is within the bound, all of them together are not
        return predict(images)

    check.predict = slow
    photos = [("photo", car("red"))] if path == "/v1/explain" else [("photos", car("red"))] * 20
    request = requests.Request("POST", "http://x" + path, files=photos).prepare()
    sent = []

    async def receive():
        return {"type": "http.request", "body": request.body}

    async def send(message):
        sent.append(message)

    headers = [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    asyncio.run(create_app(check, Limits(answer_seconds=0.3), threads=1)(scope, receive, send))
    released.set()
    head, answer = sent
    assert head["status"] == 503 and "no answer within" in json.loads(answer["body"])["error"]
    assert len(computed) <= most  # of a batch's photos, those that had not begun are dropped
