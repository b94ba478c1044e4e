"""What the server survives: slow and broken clients, many at once, signals, a damaged model."""

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import requests

pytest.importorskip("fastapi")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tests.check.serving import SOURCE, car, multipart, running, wait_for


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
