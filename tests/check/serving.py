"""A server as a real process, and pictures to send to it."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import requests
from PIL import Image

import carspotter_check
from carspotter_check.rejection import Rejection
from tests.check.toy import write_colour_bundle

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # importing ONNX Runtime here must not report anything either
SIZE = 48
SOURCE = Path(carspotter_check.__file__).parents[1]


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


def multipart(photo):
    head = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'
    body = head + photo + b"\r\n--x--\r\n"
    lines = ["POST /v1/check HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=x"]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


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


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
