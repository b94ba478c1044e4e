"""The server, as a real process: what it answers, and what it survives. The page, in a real browser."""

import asyncio
import base64
import contextlib
import html
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

pytest.importorskip("fastapi")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # importing it here must not report anything either
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from carspotter_check import photo_check
from carspotter_check.gate import Limits
from carspotter_check.photo_check import PhotoCheck
from carspotter_check.rejection import Rejection
from carspotter_check.server import create_app
from tests.check.toy import write_colour_bundle

SIZE = 48
SOURCE = Path(photo_check.__file__).parents[1]


def write_bundle(folder):
    """A reddish photo is a swift, a bluish one a wagonr."""
    return write_colour_bundle(folder, SIZE, (-20, 0, 20), Rejection(confidence=0.8))


def car(colour, size=(320, 240), format="JPEG", mode="RGB", **options):
    """A textured picture of one tint."""
    coarse = np.random.default_rng(0).integers(0, 90, (size[1] // 10, size[0] // 10, 3))
    pixels = np.kron(coarse, np.ones((10, 10, 1), int))
    pixels[..., {"red": 0, "blue": 2}[colour]] += 130
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(stream, format, **options)
    return stream.getvalue()


class Server:
    """A server process of its own, its log in a file."""

    def __init__(self, bundle, folder, port=0, arguments=None, preexec_fn=None, **limits):
        folder.mkdir(exist_ok=True)
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        self.log = folder / "log.txt"
        code = (
            "import sys; from carspotter_check.server import Limits, Path, serve; "
            f"serve(Path(sys.argv[1]), port={port}, limits=Limits(**{limits!r}), **{arguments or {}!r})"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(bundle)],
            env={name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
            | {"PYTHONPATH": str(SOURCE), "TMPDIR": str(self.temporary), "PYTHONWARNINGS": "ignore"},
            cwd=self.temporary,
            preexec_fn=preexec_fn,
            stdout=subprocess.PIPE,
            stderr=self.log.open("a"),
            text=True,
        )
        line = self.process.stdout.readline()
        assert "Serving" in line, self.log.read_text()
        self.port = int(re.search(r":(\d+) ", line)[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def check(self, photo, claim=None, path="/v1/check", name="car.jpg", kind="image/jpeg", **options):
        data = {"claim": claim} if claim else None
        return requests.post(self.url + path, files={"photo": (name, photo, kind)}, data=data, timeout=30, **options)

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.process.wait(30)


@contextlib.contextmanager
def running(*arguments, **limits):
    server = Server(*arguments, **limits)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    with running(bundle, tmp_path_factory.mktemp("server")) as server:
        yield server
        text = server.log.read_text()
        assert "Traceback" not in text
        assert list(server.temporary.rglob("*")) == []  # no photo was stored, nor anything else


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


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


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


def multipart(photo):
    head = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'
    body = head + photo + b"\r\n--x--\r\n"
    lines = ["POST /v1/check HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=x"]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


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


def test_a_slow_client_is_sent_away_and_holds_nobody_up(bundle, tmp_path):
    with running(bundle, tmp_path, body_seconds=1.0) as server:
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(80)]
        for connection in slow:
            connection.sendall(multipart(car("red"))[:500])
        assert server.check(car("red"), "swift").status_code == 200  # more slow clients than jobs are admitted
        for connection in slow:
            connection.settimeout(20)
            assert b" 408 " in connection.recv(100)
            connection.close()
        assert "Traceback" not in server.log.read_text()


def test_a_client_that_never_ends_its_headers_is_sent_away(bundle, tmp_path):
    with running(bundle, tmp_path, body_seconds=1.0) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as silent, requests.Session() as patient:
            silent.settimeout(20)
            silent.sendall(b"POST /v1/check HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            assert patient.get(server.url + "/healthz", timeout=10).status_code == 200
            assert silent.recv(100).startswith(b"HTTP/1.1 408 ")
            assert b"no request came within 1 s" in silent.recv(1000)
            assert silent.recv(100) == b""
        assert server.check(car("red"), "swift").status_code == 200


def test_a_client_gone_in_the_middle_leaves_nothing_behind(bundle, tmp_path):
    photo = car("red", size=(1600, 1200))
    with running(bundle, tmp_path, buffered=len(photo) * 3) as server:
        for _ in range(8):  # more than the buffer would hold if it were not given back
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(multipart(photo)[: len(photo) // 2])
        wait_for(lambda: sum(line["status"] == 499 for line in server.lines()) == 8)
        assert server.check(photo).status_code == 200
        assert "Traceback" not in server.log.read_text()


def test_bytes_after_the_answer_do_not_keep_a_connection(bundle, tmp_path):
    with (
        running(bundle, tmp_path, body_seconds=1.0, drained=0) as server,
        socket.create_connection(("127.0.0.1", server.port)) as connection,
    ):
        connection.settimeout(20)
        head = "POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
        connection.sendall(head.encode() + b"x")
        assert b" 413 " in connection.recv(100)
        ended = time.monotonic() + 20
        with contextlib.suppress(OSError):
            while time.monotonic() < ended:  # a byte now and then, for ever
                connection.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() < ended


def test_many_idle_connections_make_room_for_one_that_asks(bundle, tmp_path):
    with running(bundle, tmp_path, connections=20) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
        assert server.check(car("red"), "swift").status_code == 200
        assert sum("too many connections" in line for line in server.log.read_text().splitlines()) == 1
        for connection in idle:
            connection.close()


def test_few_file_descriptors_do_not_end_the_server(bundle, tmp_path):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))

    with running(bundle, tmp_path, preexec_fn=limit) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(150)]
        assert server.check(car("red"), "swift").status_code == 200
        for connection in idle:
            connection.close()
        assert "Traceback" not in server.log.read_text()


def test_a_single_photo_overtakes_a_batch_and_both_are_answered():
    from carspotter_check.workers import Workers

    async def measure():
        workers, order = Workers(1, 64), []

        def unit(name):
            return lambda: order.append(name) or time.sleep(0.01)

        batch = asyncio.create_task(workers.run([unit("batch")] * 20))
        await asyncio.sleep(0)
        await workers.run([unit("single")])
        await batch
        assert workers.admitted == 0 and not workers._began, "no thread computes any more"
        return order

    order = asyncio.run(measure())
    assert order.index("single") <= 3 and len(order) == 21


def test_work_beyond_the_bound_is_refused_and_what_nobody_waits_for_is_dropped():
    from carspotter_check.workers import Refused, Workers

    async def measure():
        workers, done = Workers(1, 4), []
        release = threading.Event()
        blocking = asyncio.create_task(workers.run([release.wait]))
        while not workers._began:
            await asyncio.sleep(0.001)
        with pytest.raises(Refused, match="busy"):
            await workers.run([lambda: None] * 4)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(workers.run([lambda: done.append("late")]), 0.05)
        release.set()
        await blocking
        await workers.run([lambda: None])
        assert done == [] and workers.admitted == 0
        with pytest.raises(ZeroDivisionError):
            await workers.run([lambda: 1 / 0])

    asyncio.run(measure())


def test_not_ready_while_every_thread_is_held(bundle, tmp_path):
    from carspotter_check.workers import Workers

    async def measure():
        workers, release = Workers(1, 64), threading.Event()
        held = asyncio.create_task(workers.run([release.wait]))
        while workers.expected_seconds() < 0.1:
            await asyncio.sleep(0.01)
        release.set()
        await held
        assert workers.expected_seconds() == 0

    asyncio.run(asyncio.wait_for(measure(), 20))


def test_500_uploads_at_once_are_answered_or_told_to_come_back(bundle, tmp_path):
    async def upload(port, message):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(message)
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return answer

    async def all_at_once(port):
        message = multipart(car("red"))
        return await asyncio.gather(*(upload(port, message) for _ in range(500)))

    with running(bundle, tmp_path, waiting=8) as server:
        answers = asyncio.run(all_at_once(server.port))
        statuses = [int(answer.split()[1]) for answer in answers]
        assert set(statuses) == {200, 503}, set(statuses)
        assert all(b"retry-after: 1" in a and b"try again" in a for a in answers if b" 503 " in a[:20])
        assert server.check(car("red")).status_code == 200
        assert "Traceback" not in server.log.read_text()


def test_sigterm_ends_within_three_seconds_under_load(bundle, tmp_path):
    with running(bundle, tmp_path) as server:
        slow = socket.create_connection(("127.0.0.1", server.port))
        slow.sendall(multipart(car("red"))[:2000])  # never finished
        photo = car("red", size=(1600, 1200))

        def explain():
            with contextlib.suppress(requests.RequestException):
                server.check(photo, path="/v1/explain")

        threads = [threading.Thread(target=explain) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda: requests.get(f"{server.url}/readyz", timeout=10).ok)
        started = time.monotonic()
        assert server.stop() == 0 and time.monotonic() - started < 3
        slow.close()
        for thread in threads:
            thread.join()


def test_sigterm_lets_an_upload_finish(bundle, tmp_path):
    with running(bundle, tmp_path) as server:
        message = multipart(car("red"))
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(message[:2000])
        assert server.check(car("red")).status_code == 200  # the server has seen the first one by now
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not accepts(server.port))
        connection.sendall(message[2000:])
        connection.settimeout(20)
        assert b" 200 " in connection.recv(100)
        connection.close()
        assert server.process.wait(30) == 0


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def test_killed_and_started_again_under_load_it_answers_again(bundle, tmp_path):
    photo, stop, statuses = car("red"), threading.Event(), []

    def load(url):
        while not stop.is_set():
            try:
                answer = requests.post(f"{url}/v1/check", files={"photo": photo}, timeout=10)
                statuses.append(answer.status_code)
            except requests.RequestException:
                statuses.append(None)
                stop.wait(0.02)

    with running(bundle, tmp_path / "first") as server:
        threads = [threading.Thread(target=load, args=(server.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: statuses.count(200) > 5)
            server.stop(signal.SIGKILL)
            wait_for(lambda: None in statuses)
            with running(bundle, tmp_path / "second", port=server.port):
                before = statuses.count(200)
                wait_for(lambda: statuses.count(200) > before + 20)
                stop.set()
                for thread in threads:
                    thread.join()
        finally:
            stop.set()
    assert set(statuses) <= {200, 503, None}


def test_the_server_loads_no_framework(bundle):
    code = """
import sys
from pathlib import Path
from carspotter_check.photo_check import PhotoCheck
import carspotter_check.server
PhotoCheck.load(Path(sys.argv[1]))
print(sorted({"tensorflow", "torch", "keras", "onnx", "scipy", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, cwd=SOURCE)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_corrupt_model_stops_the_server_before_it_listens(bundle, tmp_path):
    from carspotter_check.server import serve

    broken = shutil.copytree(bundle, tmp_path / "bundle")
    (broken / "model.onnx").write_bytes(b"\x00" * 1000)
    with pytest.raises(ValueError, match="SHA-256 differs"):
        serve(broken)
    (broken / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="model.onnx is missing"):
        serve(broken)


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--disable-dev-shm-usage", "--disable-background-networking"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def cards(browser):
    return browser.find_elements("css selector", ".card")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 780)], ids=["desktop", "phone"])
def test_a_swift_claimed_as_wagonr_is_flagged_on_the_page(server, browser, tmp_path, width, height):
    (tmp_path / "my swift.jpg").write_bytes(car("red", size=(640, 480)))
    (tmp_path / "drawing.jpg").write_bytes(b"<svg/>")
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(server.url)
    wait_for(lambda: len(browser.find_elements("css selector", "#claims label")) == 3)
    browser.find_element("xpath", "//label[span='wagonr']").click()
    files = browser.find_element("id", "files")
    files.send_keys(f"{tmp_path}/my swift.jpg\n{tmp_path}/drawing.jpg")
    wait_for(lambda: len(cards(browser)) == 2 and "checking" not in browser.find_element("id", "results").text)

    swift, drawing = cards(browser)
    assert "other_model" in swift.get_attribute("class") and "claimed wagonr, looks like swift" in swift.text
    assert re.search(r"swift\s+(9\d|100)\.\d %", swift.text)
    assert "unusable" in drawing.get_attribute("class") and "SVG" in drawing.text
    swift.find_element("css selector", ".explain").click()
    canvas = swift.find_element("css selector", "canvas")
    wait_for(canvas.is_displayed)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.find_element("id", "camera").get_attribute("capture") == "environment"
    if folder := os.environ.get("CARSPOTTER_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/page_{width}.png")
    severe = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "415" not in entry["message"]
    ]
    assert severe == []


@pytest.mark.slow
@pytest.mark.parametrize(("decided_by", "is_hidden"), [("likeness", True), ("confidence", False)])
def test_what_decided_is_offered_only_where_a_class_was(server, browser, decided_by, is_hidden):
    answer = {"verdict": "not_sure", "reason": "", "probabilities": {"swift": 0.9, "wagonr": 0.1}, "unlike": 0.999}
    browser.get(server.url)
    fill = "const one = card(new Blob(), ''); fill(one, new Blob(), arguments[0]); return $('.explain', one).hidden;"
    assert browser.execute_script(fill, answer | {"decided_by": decided_by}) == is_hidden


@pytest.mark.slow
def test_photos_of_one_car_get_one_verdict_on_top_of_their_own(server, browser, tmp_path):
    for name, colour in (("front", "red"), ("rear", "red"), ("other", "blue")):
        (tmp_path / f"{name}.jpg").write_bytes(car(colour))
    browser.get(server.url)
    wait_for(lambda: len(browser.find_elements("css selector", "#claims label")) == 3)
    browser.find_element("id", "together").click()
    browser.find_element("id", "files").send_keys("\n".join(f"{tmp_path}/{n}.jpg" for n in ("front", "rear", "other")))
    wait_for(lambda: len(cards(browser)) == 4 and "checking" not in browser.find_element("id", "results").text)
    listing, front, _, other = cards(browser)
    assert "3 photos of one car" in listing.text and "Decided by" in listing.text
    assert "front.jpg" in front.text and "looks like swift" in front.text
    assert "other.jpg" in other.text and "looks like wagonr" in other.text


@pytest.mark.slow
def test_a_photo_dropped_on_the_page_is_checked(server, browser):
    browser.get(server.url)
    wait_for(lambda: len(browser.find_elements("css selector", "#claims label")) == 3)
    browser.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
        document.querySelector("#drop").dispatchEvent(
          new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        """,
        base64.b64encode(car("blue")).decode(),
    )
    wait_for(lambda: cards(browser) and "looks like wagonr" in cards(browser)[0].text)
