"""The photo check over HTTP, on ONNX Runtime: one photo or a batch, a page for people, limits for everybody.

An upload passes three doors. `Gate` reads the body into memory, never to disk, within bounds of size and time;
`Workers` admits a bounded number of jobs to as many threads as there are cores; a decoder's door lets large pictures
in one at a time. Whoever finds a door closed hears so at once, with a status and a sentence. No photo is stored or
logged.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import h11
import uvicorn
from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartParser
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from carspotter import __version__
from carspotter.photos.decoding import FORMATS, UnreadablePhoto
from carspotter_check.explain import occlusion_map
from carspotter_check.photo_check import PhotoCheck

log = logging.getLogger("carspotter.server")
PAGE = Path(__file__).parent
SAFE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


Photo = Annotated[UploadFile, File(description="a JPEG, PNG, WebP, GIF, BMP or TIFF file")]
Claim = Annotated[str | None, Form(description="the class that the listing claims")]
Label = Annotated[str | None, Form(description="the class to explain (default: the likeliest)")]


@dataclass(frozen=True)
class Limits:
    """What the server takes on: sizes in bytes, pixels or requests, times in seconds."""

    body: int = 10 * 2**20
    batch: int = 20  # photos in one request
    buffered: int = 96 * 2**20  # of all bodies being read or waiting
    waiting: int = 64  # jobs admitted: a few seconds of work, longer than that nobody waits
    body_seconds: float = 20.0
    answer_seconds: float = 30.0
    large_pixels: int = 4_000_000  # beyond this, decoding takes 12 MB or more: one at a time
    drained: int = 64 * 2**20  # of a refused body, so that its sender gets to read why


class AnswerBody(BaseModel):
    """What the check says of one photo."""

    photo: str
    verdict: str
    label: str | None
    probabilities: dict[str, float]
    reason: str
    run: str
    version: str


class BatchBody(BaseModel):
    """Answers in the order of the photos; an unreadable photo is "unusable" here, not an error."""

    answers: list[AnswerBody]


class ExplainBody(BaseModel):
    """The class that is explained, and how much its probability drops when a cell of the photo is covered."""

    label: str
    heat: list[list[float]]


class ErrorBody(BaseModel):
    """Why there is no answer, in a sentence."""

    error: str
    request_id: str


class Refused(Exception):
    """A request that is turned away: status and sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Workers:
    """As many threads as cores, and a bounded number of jobs that wait for them."""

    def __init__(self, limits: Limits, threads: int):
        self.limits, self.jobs = limits, 0
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="check")

    @property
    def full(self) -> bool:
        return self.jobs >= self.limits.waiting

    async def run(self, job: Callable[[], Any]) -> Any:
        if self.full:
            raise Refused(503, f"busy: {self.jobs} photos are waiting; try again in a second")
        self.jobs += 1
        future = self.pool.submit(job)
        # Counted until the thread lets go of it, also when nobody waits for the answer any more.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.answer_seconds)
        except TimeoutError:
            raise Refused(503, f"no answer within {self.limits.answer_seconds:.0f} s; try again later") from None

    def _done(self) -> None:
        self.jobs -= 1


class Gate:
    """The door of the app: request ids, one log line per request, bodies bounded in size and time, no trace outside."""

    def __init__(self, app, limits: Limits, workers: Workers):
        self.app, self.limits, self.workers, self.buffered = app, limits, workers, 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        offered = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = offered if re.fullmatch(r"[\w.-]{1,64}", offered, re.ASCII) else uuid.uuid4().hex
        facts = {"request_id": request_id, "method": scope["method"], "path": scope["path"], "status": 499, "bytes": 0}
        scope["facts"] = facts
        started = time.perf_counter()

        async def answer(message) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                extra = {"x-request-id": request_id, **SAFE_HEADERS}
                if message["status"] == 503:
                    extra["retry-after"] = "1"
                message["headers"] += [(name.encode(), value.encode()) for name, value in extra.items()]
            await send(message)

        try:
            if scope["method"] == "POST":
                await self._take_in(scope, headers, receive, answer)
            else:
                await self.app(scope, receive, answer)
        except ClientDisconnect:
            pass  # 499, as nginx calls it: nobody is there to hear more
        except Refused as refusal:
            body = {"error": refusal.sentence, "request_id": request_id}
            await JSONResponse(body, refusal.status)(scope, receive, answer)
        except Exception:
            log.exception(json.dumps({"request_id": request_id, "event": "failed"}))
            if facts["status"] == 499:
                body = {"error": "the check failed; this is our fault, not the photo's", "request_id": request_id}
                await JSONResponse(body, 500)(scope, receive, answer)
        finally:
            facts["ms"] = round(1000 * (time.perf_counter() - started), 1)
            log.info(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}))

    async def _take_in(self, scope, headers, receive, send) -> None:
        """Read the body within the limits, then hand it to the app as if it came in one piece."""
        limits = self.limits
        refusal = self._refuse_by_headers(headers)
        if refusal is None and self.workers.full:
            refusal = Refused(503, f"busy: {self.workers.jobs} photos are waiting; try again in a second")
        body, read = bytearray(), 0
        try:
            async with asyncio.timeout(limits.body_seconds):
                more = True
                while more and read <= limits.drained:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    read += len(chunk)
                    if refusal is None and read > limits.body:
                        refusal = Refused(413, f"the request is larger than {limits.body / 2**20:.0f} MB")
                    if refusal is None and self.buffered + len(chunk) > limits.buffered:
                        refusal = Refused(503, "busy: too many uploads at once; try again in a second")
                    if refusal is None:
                        body += chunk
                        self.buffered += len(chunk)
            scope["facts"]["bytes"] = read
            if refusal is not None:
                raise refusal
            pieces = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

            async def replay():
                return next(pieces, None) or await receive()

            await self.app(scope, replay, send)
        except TimeoutError:
            sentence = f"the upload took longer than {limits.body_seconds:.0f} s"
            raise refusal or Refused(408, sentence) from None
        finally:
            self.buffered -= len(body)

    def _refuse_by_headers(self, headers) -> Refused | None:
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return Refused(400, "the header Content-Length is not a number")
        if len(length) > 15 or int(length) > self.limits.body:  # Python refuses numbers of thousands of digits
            return Refused(413, f"the request is larger than {self.limits.body / 2**20:.0f} MB")
        content_type = headers.get(b"content-type", b"").decode("latin-1").lower()
        if not content_type.startswith("multipart/form-data"):
            return Refused(415, f"send multipart/form-data with a photo, not {content_type or 'a body of no type'}")
        return None


def create_app(check: PhotoCheck, limits: Limits = Limits(), threads: int | None = None) -> Gate:
    """Give the ASGI app that answers with `check`, on `threads` threads (default: one per core)."""
    MultiPartParser.spool_max_size = limits.body + 1  # a larger part would be written to disk
    workers = Workers(limits, threads or os.cpu_count() or 1)
    one_large_at_a_time = threading.Lock()
    app = FastAPI(
        title="Carspotter photo check",
        version=__version__,
        description="Is this the car model that it is said to be? Photos are neither stored nor logged.",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        responses={status: {"model": ErrorBody} for status in (400, 408, 413, 415, 422, 503)},
    )

    def read(photo: bytes):
        if not photo:
            raise Refused(400, "the photo is empty (0 bytes)")
        try:
            if _pixels(photo) > limits.large_pixels:
                with one_large_at_a_time:
                    return check.read(photo)
            return check.read(photo)
        except UnreadablePhoto as error:
            raise Refused(_status_of(error.reason), f"unusable: {error.reason}") from None

    def known(claim: str | None) -> str | None:
        try:
            check.know(claim or None)
        except ValueError as error:
            raise Refused(422, str(error)) from None
        return claim or None

    def answer_one(photo: bytes, claim: str | None, name: str) -> dict:
        return check.judge(read(photo), claim, name).as_dict()

    def answer_in_batch(photo: bytes, claim: str | None, name: str) -> dict:
        try:
            return answer_one(photo, claim, name)
        except Refused as refusal:
            reason = refusal.sentence.removeprefix("unusable: ")
            return dict(
                photo=name, verdict="unusable", label=None, probabilities={}, reason=reason, run=check.run_id,
                version=check.version,
            )  # fmt: skip

    @app.post("/v1/check", response_model=AnswerBody, summary="Check one photo")
    async def check_one(request: Request, photo: Photo, claim: Claim = None):
        claim, data = known(claim), await photo.read()
        answer = await workers.run(lambda: answer_one(data, claim, _name(photo)))
        request.scope["facts"]["verdict"] = answer["verdict"]
        return JSONResponse(answer)

    @app.post("/v1/check-batch", response_model=BatchBody, summary=f"Check up to {limits.batch} photos of one claim")
    async def check_batch(request: Request, photos: Annotated[list[UploadFile], File()], claim: Claim = None):
        claim = known(claim)
        if len(photos) > limits.batch:
            raise Refused(422, f"{len(photos)} photos in one request; at most {limits.batch} are taken")
        pairs = [(await photo.read(), _name(photo)) for photo in photos]
        answers = await workers.run(lambda: [answer_in_batch(data, claim, name) for data, name in pairs])
        request.scope["facts"]["verdict"] = ",".join(answer["verdict"] for answer in answers)
        return JSONResponse({"answers": answers})

    @app.post("/v1/explain", response_model=ExplainBody, summary="Show which parts of a photo decide")
    async def explain(photo: Photo, label: Label = None):
        label, data = known(label), await photo.read()

        def job() -> dict:
            image = read(data)
            number = check.class_names.index(label) if label else int(check.predict(image[None])[0][0].argmax())
            heat = occlusion_map(lambda images: check.predict(images)[0], image, number)
            return {"label": check.class_names[number], "heat": heat.round(4).tolist()}

        return JSONResponse(await workers.run(job))

    @app.get("/v1/model", summary="The model and its thresholds")
    async def model() -> dict:
        return {
            "run": check.run_id,
            "version": check.version,
            "classes": check.class_names,
            "image_size": check.image_size,
            "rejection": check.rejection.as_dict(),
        }

    @app.get("/healthz", summary="Is the process alive?")
    async def healthz() -> dict:
        return {"status": "alive"}

    @app.get("/readyz", summary="Does it take photos now?")
    async def readyz():
        return JSONResponse({"status": "busy" if workers.full else "ready"}, 503 if workers.full else 200)

    for route, file in (("/", "page.html"), ("/page.js", "page.js"), ("/page.css", "page.css")):
        app.add_api_route(route, _serve_file(PAGE / file), include_in_schema=False)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused):
        return _error(request, error.status, error.sentence)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError):
        first = error.errors()[0]
        return _error(request, 422, f"field {first['loc'][-1]!r}: {first['msg'].lower()}")

    @app.exception_handler(StarletteHTTPException)
    async def wrong(request: Request, error: HTTPException):
        return _error(request, error.status_code, str(error.detail))

    return Gate(app, limits, workers)


def bounded_headers(seconds: float) -> type[H11Protocol]:
    """Give Uvicorn's protocol with a clock: a connection whose request has not begun within `seconds` gets a 408.

    The app is called when the headers are complete, so `Gate` cannot time those who send them byte by byte, and
    Uvicorn itself waits for ever.
    """

    class Protocol(H11Protocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.start_clock()

        def on_response_complete(self):
            super().on_response_complete()
            self.start_clock()

        def start_clock(self):
            self.loop.call_later(seconds, self.end_wait, self.cycle)  # complete headers begin a new cycle

        def end_wait(self, cycle):
            waiting = self.cycle is cycle and self.conn.their_state is h11.IDLE
            if waiting and not self.transport.is_closing():
                self.transport.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                self.transport.close()

    return Protocol


def serve(
    bundle: Path, host: str = "127.0.0.1", port: int = 8000, threads: int | None = None, limits: Limits = Limits()
) -> None:
    """Serve the bundle until SIGTERM or SIGINT; what is being answered then is answered still.

    One JSON line per request goes to standard error. Port 0 takes a free one; the line "Serving …" on standard output
    says which. Raises FileNotFoundError or ValueError for a missing or damaged bundle, OSError for a port in use.
    """
    check = PhotoCheck.load(bundle, threads=1)
    check.predict(_blank(check))  # the first answer of a session is slow; better here than for somebody
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    config = uvicorn.Config(
        create_app(check, limits, threads), host, port, log_config=None, access_log=False, timeout_keep_alive=5,
        timeout_graceful_shutdown=30, server_header=False, lifespan="off", http=bounded_headers(limits.body_seconds),
    )  # fmt: skip
    listening = config.bind_socket()
    listening.listen(config.backlog)  # before the line below invites anybody
    print(f"Serving {check.run_id} on http://{host}:{listening.getsockname()[1]} (Ctrl-C stops it)", flush=True)
    # Uvicorn raises the signal again when it has drained: a wanted stop is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.Server(config).run(sockets=[listening])


def _serve_file(path: Path):
    async def file():
        return FileResponse(path)

    return file


def _error(request: Request, status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence, "request_id": request.scope["facts"]["request_id"]}, status)


def _name(photo: UploadFile) -> str:
    return re.split(r"[\\/]", photo.filename or "photo")[-1][:200]


def _pixels(photo: bytes) -> int:
    """Read a picture's size from its header, without decoding; 0 where there is none, decoding will say why."""
    try:
        width, height = Image.open(io.BytesIO(photo), formats=list(FORMATS)).size
        return width * height
    except Exception:  # on damaged bytes Pillow raises nearly everything there is
        return 0


def _status_of(reason: str) -> int:
    """Give the HTTP status of an unreadable photo's reason: too much, not a photo at all, or a broken one."""
    if "limit of" in reason:
        return 413
    return 415 if "not a photo" in reason else 422


def _blank(check: PhotoCheck):
    import numpy as np

    return np.zeros((1, check.image_size, check.image_size, 3), np.uint8)
