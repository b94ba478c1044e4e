"""The photo check over HTTP, on ONNX Runtime: a photo, a batch or a listing, a page for people, limits for everybody.

`gate` bounds bytes, connections and seconds, `workers` the work that waits. What is beyond a bound is refused with a
status and a sentence. No photo is stored or logged.
"""

from __future__ import annotations

import errno
import html
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from carspotter import __version__
from carspotter.photos.decoding import UnreadablePhoto, is_plain
from carspotter_check.explain import occlusion_map
from carspotter_check.gate import Gate, Limits, OnceAMinute, bounded_protocol, rare, read_form, say_error
from carspotter_check.listing import ListingAnswer, combine, mark_copies
from carspotter_check.photo_check import Answer, PhotoCheck
from carspotter_check.workers import Refused, Workers, usable_cores

log = logging.getLogger("carspotter.server")
PAGE = Path(__file__).parent
LIMITS = Limits()
ROUTES = ("/v1/check", "/v1/check-batch", "/v1/listing", "/v1/explain", "/v1/model", "/healthz", "/readyz", "/metrics")
PYTHON = """import requests

with open("car.jpg", "rb") as photo:
    answer = requests.post("http://SERVER/v1/check", files={"photo": photo}, data={"claim": "NAME"}, timeout=30)
print(answer.json()["verdict"], answer.json()["reason"])"""
UNREADABLE = {"large": 413, "format": 415, "library": 415}  # status by kind; all else is 422


@dataclass
class BatchBody:
    """Answers in the order of the photos; an unreadable photo is "unusable" here, not an error."""

    answers: list[Answer]


@dataclass
class ExplainBody:
    """The class that is explained, and how much its probability drops when a cell of the photo is covered."""

    label: str
    heat: list[list[float]]


@dataclass
class ErrorBody:
    """Why there is no answer, in a sentence."""

    error: str
    request_id: str


class Metrics:
    """Counts for Prometheus: requests by route and status, their seconds, verdicts, and what is waiting now."""

    def __init__(self, workers: Workers):
        self.registry = CollectorRegistry()
        described = {"registry": self.registry, "namespace": "carspotter"}
        self.requests = Counter("requests", "Requests", ["route", "status"], **described)
        self.seconds = Histogram("request_seconds", "Time from headers to answer", ["route"], **described)
        self.verdicts = Counter("verdicts", "Answers by verdict", ["verdict"], **described)
        Gauge("waiting", "Photos admitted and not answered", **described).set_function(lambda: workers.admitted)

    def count(self, facts: dict[str, Any]) -> None:
        route = facts["path"] if facts["path"] in ROUTES else "other"
        self.requests.labels(route, facts["status"]).inc()
        self.seconds.labels(route).observe(facts["ms"] / 1000)
        for verdict in filter(None, facts.get("verdict", "").split(",")):
            self.verdicts.labels(verdict).inc()


def create_app(check: PhotoCheck, limits: Limits = LIMITS, threads: int | None = None, root_path: str = "") -> Gate:
    """Return the ASGI app that answers with `check`, on `threads` threads (default: as many as cores may be used).

    `root_path`: the prefix under which a proxy shows the server.
    """
    root_path = "/" + root_path.strip("/") if root_path.strip("/") else ""
    workers = Workers(threads or usable_cores(), limits.waiting)
    hard = Workers(2, limits.hard, "decode")  # photos that a child process has to decode
    explainer = Workers(1, limits.explained, "explain")  # a thread of its own: no check waits for it
    metrics = Metrics(workers)
    errors = {status: {"model": ErrorBody} for status in (400, 408, 413, 415, 422, 503)}
    app = FastAPI(
        title="Carspotter photo check",
        version=__version__,
        description="Is this the car model that it is said to be? Photos are neither stored nor logged.",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )

    async def compute(unit: Callable[[], Any], threads: Workers = workers) -> Any:
        return (await threads.run([unit]))[0]

    async def take(request: Request, photos: str, most: int, field: str) -> tuple[list[tuple[bytes, str]], str | None]:
        """Return the photos of a form, (bytes, name) each, and its text field; Refused for anything else in it."""
        if request.query_params:
            raise Refused(422, f"{next(iter(request.query_params))!r} in the address: send {field} as a form field")
        parse = partial(read_form, request.scope)
        large = len(request.scope["body"]) > 2**18  # a body made for it costs the parser seconds
        found, text = [], []
        for name, filename, content in await compute(parse) if large else parse():
            if name == photos:
                found.append((content, (filename or "photo").replace("\\", "/").rsplit("/")[-1][:200]))
            elif name == field and filename is None:
                text.append(content.decode("utf-8", "replace"))
            else:
                kind = " as a file" if name == field else ""
                raise Refused(422, f"unknown field {name!r}{kind}; this takes {photos!r} (files) and {field!r}")
        if not 0 < len(found) <= most:
            asked = f"at most {most} files" if most > 1 else "one file"
            raise Refused(422, f"{len(found)} photos; send {asked} in the field {photos!r}")
        if len(text) > 1:
            raise Refused(422, f"the field {field!r} is there {len(text)} times")
        said = text[0] if text and text[0] else None
        try:
            check.know(said)
        except ValueError as error:
            raise Refused(422, str(error)) from None
        return found, said

    def read(photo: bytes):
        if not photo:
            raise Refused(400, "the photo is empty (0 bytes)")
        try:
            return check.read(photo)
        except UnreadablePhoto as error:
            raise Refused(UNREADABLE.get(error.kind, 422), f"unusable: {error.reason}") from None

    async def judge(photos: list[tuple[bytes, str]], claim: str | None, strict: bool) -> list[Answer]:
        """Return the answers; an unreadable photo raises Refused if `strict`, else it is "unusable"."""

        def answer(photo: bytes, name: str, wait: bool) -> Answer | None:
            if not (wait or is_plain(photo)):
                return None
            try:
                return check.judge(read(photo), claim, name)
            except Refused as refusal:
                if strict:
                    raise
                return check.unusable(refusal.sentence.removeprefix("unusable: "), name)

        answers = await workers.run([partial(answer, *photo, wait=False) for photo in photos])
        for place, photo in enumerate(photos):
            if answers[place] is None:  # decoding it may take a child process and seconds, while others pass
                answers[place] = await compute(partial(answer, *photo, wait=True), hard)
        return answers

    def post(route: str, body: type, photos: str, field: str, summary: str):
        many = photos == "photos"
        file = {"type": "string", "format": "binary"}
        fields = {photos: {"type": "array", "items": file} if many else file, field: {"type": "string"}}
        form = {"schema": {"type": "object", "required": [photos], "properties": fields}}
        extra = {"requestBody": {"required": True, "content": {"multipart/form-data": form}}}
        return app.post(route, response_model=body, summary=summary, openapi_extra=extra, responses=errors)

    @post("/v1/check", Answer, "photo", "claim", "Check one photo")
    async def check_one(request: Request):
        photos, claim = await take(request, "photo", 1, "claim")
        (answer,) = await judge(photos, claim, strict=True)
        request.scope["facts"]["verdict"] = answer.verdict
        return JSONResponse(asdict(answer))

    @post("/v1/check-batch", BatchBody, "photos", "claim", f"Check up to {limits.batch} photos, one by one")
    async def check_batch(request: Request):
        photos, claim = await take(request, "photos", limits.batch, "claim")
        answers = await judge(photos, claim, strict=False)
        request.scope["facts"]["verdict"] = ",".join(answer.verdict for answer in answers)
        return JSONResponse({"answers": [*map(asdict, answers)]})

    @post("/v1/listing", ListingAnswer, "photos", "claim", f"One verdict on up to {limits.batch} photos of one car")
    async def check_listing(request: Request):
        photos, claim = await take(request, "photos", limits.batch, "claim")
        answers = await judge(photos, claim, strict=False)
        verdict = combine(check, mark_copies(check, answers, [photo for photo, _ in photos]), claim)
        request.scope["facts"]["verdict"] = verdict.verdict
        return JSONResponse(asdict(verdict))

    @post("/v1/explain", ExplainBody, "photo", "label", "Show which parts of a photo decide")
    async def explain(request: Request):
        ((photo, _),), label = await take(request, "photo", 1, "label")

        def look() -> tuple[int, np.ndarray]:
            image = read(photo)
            number = check.class_names.index(label) if label else int(check.predict(image[None])[0][0].argmax())
            return number, occlusion_map(lambda images: check.predict(images)[0], image, number)

        number, heat = await compute(look, explainer)
        return JSONResponse({"label": check.class_names[number], "heat": heat.astype(float).round(4).tolist()})

    @app.get("/v1/model", summary="The model and its thresholds")
    async def model() -> dict:
        return check.describe()

    @app.get("/healthz", summary="Is the process alive?")
    async def healthz() -> dict:
        return {"status": "alive"}

    @app.get("/readyz", summary="Would a photo be answered in time?", responses={503: {"description": "Busy"}})
    async def readyz():
        seconds = workers.expected_seconds()
        ready = seconds <= limits.in_time and workers.admitted < workers.waiting
        body = {"status": "ready" if ready else "busy", "expected_seconds": round(seconds, 2)}
        return JSONResponse(body, 200 if ready else 503)

    @app.get("/metrics", summary="Counts for Prometheus", response_class=Response)
    async def numbers():
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    for route, file in (("/", "page.html"), ("/page.js", "page.js"), ("/page.css", "page.css")):
        app.add_route(route, lambda request, path=PAGE / file: FileResponse(path), include_in_schema=False)
    app.add_route("/docs", lambda request: HTMLResponse(describe_routes(app.openapi())), include_in_schema=False)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused):
        return say_error(request.scope["facts"]["request_id"], error.status, error.sentence)

    @app.exception_handler(HTTPException)
    async def wrong(request: Request, error: HTTPException):
        sentence = f"{error.detail}: {request.method} {request.url.path}"
        return say_error(request.scope["facts"]["request_id"], error.status_code, sentence, error.headers)

    @app.exception_handler(Exception)  # `Gate` logs it
    async def failed(request: Request, error: Exception):
        sentence = "the check failed; this is our fault, not the photo's"
        return say_error(request.scope["facts"]["request_id"], 500, sentence)

    return Gate(app, limits, workers, metrics, root_path)


def describe_routes(schema: dict) -> str:
    """Return the page that lists what can be asked, from the OpenAPI description."""
    rows = []
    for route, methods in schema["paths"].items():
        for method, about in methods.items():
            form = about.get("requestBody", {}).get("content", {}).get("multipart/form-data", {}).get("schema", {})
            names = form.get("properties", ())
            fields = "".join(f" -F {name}={'@car.jpg' if name.startswith('photo') else 'NAME'}" for name in names)
            answers = ", ".join(about["responses"])
            rows.append(
                f"<h2>{method.upper()} {html.escape(route)}</h2><p>{html.escape(about['summary'])} ({answers})"
                f"</p><pre>curl{fields} http://SERVER{html.escape(route)}</pre>"
            )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Photo check: interface</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="page.css">'
        f"<h1>{html.escape(schema['info']['title'])} {schema['info']['version']}</h1>"
        f"<p>{html.escape(schema['info']['description'])} Every error is JSON: <code>error</code>, a sentence, and "
        '<code>request_id</code>. The same for programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"<h2>In Python</h2><pre>{html.escape(PYTHON)}</pre>" + "".join(rows)
    )


def serve(
    bundle: Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    threads: int | None = None,
    root_path: str = "",
    allow_origins: Sequence[str] = (),
    limits: Limits = LIMITS,
) -> None:
    """Serve the bundle until SIGTERM or SIGINT; what can be answered within 1.5 seconds then is answered still.

    `root_path`: the prefix under which a proxy shows the server. `allow_origins`: sites whose pages may ask it.
    One JSON line per request goes to standard error. Port 0 takes a free one; the line "Serving …" on standard output
    says which. Raises FileNotFoundError or ValueError for a missing or damaged bundle, OSError for a port in use.
    """
    check = PhotoCheck.load(bundle, threads=1)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # the answer says it
    for noisy in (rare, logging.getLogger("uvicorn.error"), logging.getLogger("asyncio")):
        noisy.setLevel(logging.WARNING)
        noisy.addFilter(OnceAMinute())
    gate = create_app(check, limits, threads, root_path)
    origins, named = [origin.rstrip("/") for origin in allow_origins], ["X-Request-ID"]
    shared = {"allow_methods": ["GET", "POST"], "allow_headers": named, "expose_headers": named}
    app = CORSMiddleware(gate, origins, **shared) if origins else gate
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_keep_alive=int(limits.idle_seconds), ws="none",
        timeout_graceful_shutdown=1.5, backlog=16, server_header=False, lifespan="off", http=bounded_protocol(limits),
    )  # fmt: skip
    listening = _listen(host, port)
    address = f"[{host}]" if ":" in host else host
    print(f"Serving {check.run_id} on http://{address}:{listening.getsockname()[1]} (Ctrl-C stops it)", flush=True)
    # Uvicorn raises the signal again when it has drained: a wanted stop is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        Server(config).run(sockets=[listening])
    except (SystemExit, KeyboardInterrupt) as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 0)  # threads compute


class Server(uvicorn.Server):
    """Uvicorn, which accepts few connections at a time and lets many wait."""

    async def startup(self, sockets=None):
        # asyncio tries to accept as many at once as may wait, and complains of each for which no descriptor is left.
        await super().startup(sockets)
        sockets[0].listen(2048)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise OSError(f"host {host} cannot be found ({error.strerror}); name another with --host") from error
    # With proto 0 asyncio would not set TCP_NODELAY, and answers would wait 40 ms for an acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        words = f"cannot be used ({error.strerror}); name others with --host and --port"
        if error.errno == errno.EADDRINUSE:
            words = "is in use; stop what listens there or take another: --port"
        raise OSError(f"port {port} of {host} {words}") from error
    listening.listen(2048)  # before "Serving" invites anybody
    listening.setblocking(False)
    return listening
