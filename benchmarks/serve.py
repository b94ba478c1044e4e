"""How much does serving cost? Requests/s of the server as a share of a bare loop, latency at 70 % load, start, memory.

    python benchmarks/serve.py [--seconds 10] [--clients 32] [--threads N]

The model is the baseline's size with random weights: speed does not depend on what it learned. Server, bare loop and
load generator share the same cores. Needs the extras serve and export.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from carspotter.models import store
from carspotter.models.experiments import BASELINE
from carspotter.photos.decoding import PREPROCESSING
from carspotter_check import bundle
from carspotter_check.onnx_graph import build_graph
from carspotter_check.open_world import Known
from carspotter_check.photo_check import PhotoCheck
from carspotter_check.rejection import Rejection

SIZE = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="length of each measurement (default %(default)s)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    photo = make_photo()
    with tempfile.TemporaryDirectory() as folder:
        made = write_bundle(Path(folder) / "bundle")
        before = bare_loop(made, photo, options.threads, options.seconds / 2)
        started = time.perf_counter()
        server, port = start(made, options.threads)
        try:
            message = as_request(photo)
            asyncio.run(one_by_one(port, message, 1))
            cold = time.perf_counter() - started
            asyncio.run(closed_load(port, message, options.clients, 1.0))
            times = asyncio.run(closed_load(port, message, options.clients, options.seconds))
            rate = len(times) / options.seconds
            latencies = asyncio.run(open_load(port, message, 0.7 * rate, options.seconds))
            memory = peak_memory(server.pid)
        finally:
            server.terminate()
            server.wait()
        after = bare_loop(made, photo, options.threads, options.seconds / 2)
    bare = (before + after) / 2
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    print(f"{options.threads} threads, {options.clients} clients, {len(photo) / 1000:.0f} kB JPEG of 640×480")
    print(f"bare loop   {bare:7.1f} photos/s (before {before:.1f}, after {after:.1f})")
    print(f"server      {rate:7.1f} requests/s = {rate / bare:.2f} of the bare loop (wanted: .80 or more)")
    print(f"70 % load   p50 {p50:.1f} ms, p99 {p99:.1f} ms = {p99 / p50:.1f} × p50 (wanted: 5 or less)")
    print(f"cold start  {cold:7.2f} s to the first answer (wanted: 3 or less)")
    print(f"memory      {memory:7.0f} MB at the peak (wanted: 400 or less)")


def make_photo() -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_bundle(folder: Path) -> Path:
    rng, classes, width = np.random.default_rng(0), ["swift", "wagonr"], BASELINE.dense_units
    model = store.import_framework("keras").build_model(BASELINE, 2)
    folder.mkdir()
    (folder / bundle.ONNX_MODEL).write_bytes(build_graph("keras", model, BASELINE, classes))
    known, labels = rng.normal(0, 1, (4_800, width)), np.arange(4_800) % 2
    Known.fit(known, labels, known[:800], labels[:800], known[:0], np.array([])).save(folder / bundle.KNOWN)
    manifest = {"format": "onnx", "preprocessing": PREPROCESSING, "run": "random", "classes": classes}
    bundle.write_manifest(folder, manifest | {"image_size": SIZE, "rejection": Rejection().as_dict()})
    return folder


def bare_loop(folder: Path, photo: bytes, threads: int, seconds: float) -> float:
    """Give photos/s of decoding and predicting alone, on as many threads as the server has."""
    check = PhotoCheck.load(folder, threads=1)

    def work(end: float) -> int:
        done = 0
        while time.perf_counter() < end:
            check.predict(check.read(photo)[np.newaxis])
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [0.0] * threads))
        started = time.perf_counter()
        done = sum(pool.map(work, [started + seconds] * threads))
        return done / (time.perf_counter() - started)


def start(made: Path, threads: int) -> tuple[subprocess.Popen, int]:
    code = (
        "import sys; from carspotter_check.server import *; serve(Path(sys.argv[1]), port=0, threads=int(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(made), str(threads)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return server, int(re.search(r":(\d+) ", server.stdout.readline())[1])


def as_request(photo: bytes) -> bytes:
    body = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n' + photo + b"\r\n--x--\r\n"
    head = "POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def ask(reader, writer, message: bytes) -> None:
    writer.write(message)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
    if b" 200 " not in head[:20]:
        raise RuntimeError(f"the server answered {head[:60]!r}")


async def one_by_one(port: int, message: bytes, count: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    for _ in range(count):
        started = time.perf_counter()
        await ask(reader, writer, message)
        times.append(time.perf_counter() - started)
    writer.close()
    return times


async def closed_load(port: int, message: bytes, clients: int, seconds: float) -> list[float]:
    """Each client asks again as soon as it is answered; give the latencies."""
    end, times = time.perf_counter() + seconds, []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            await ask(reader, writer, message)
            times.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return times


async def open_load(port: int, message: bytes, rate: float, seconds: float) -> list[float]:
    """Requests come at random times (Poisson), whether earlier ones are answered or not; give the latencies."""
    times, idle = [], []

    async def client() -> None:
        started = time.perf_counter()
        connection = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        await ask(*connection, message)
        idle.append(connection)
        times.append(time.perf_counter() - started)

    rng, due, tasks = np.random.default_rng(0), time.perf_counter(), []
    for pause in rng.exponential(1 / rate, int(rate * seconds)):
        due += pause
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(client()))
    await asyncio.gather(*tasks)
    return times


def peak_memory(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


if __name__ == "__main__":
    main()
