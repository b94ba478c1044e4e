"""Connections, bodies and forms: what a client may take of the server's time, memory and file descriptors."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message

import h11
from python_multipart.multipart import MultipartParser
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, RedirectResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from carspotter_check.workers import Refused, Workers

log = logging.getLogger("carspotter.server")
RESERVED_FILES = 32  # file descriptors for decoders, models and logs, beyond those that are open at the start
MOST_PARTS = 64  # of a form
SAFE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """What the server takes on: sizes in bytes or requests, times in seconds."""

    body: int = 10 * 2**20
    batch: int = 20  # photos in one request
    buffered: int = 96 * 2**20  # of all bodies being read or waiting
    waiting: int = 64  # photos, or as much work, admitted at once
    hard: int = 16  # of these, photos whose decoding may take seconds
    explained: int = 4  # photos whose "What decided?" is computed or waits
    body_seconds: float = 20.0
    answer_seconds: float = 30.0
    in_time: float = 2.0  # a server that would answer later than this is not ready
    idle_seconds: float = 5.0
    connections: int = 2_000
    drained: int = 64 * 2**20  # of a refused body, so that its sender gets to read why


class Gate:
    """The app within bounds of size and time: each request gets an id, a log line, and never a traceback."""

    def __init__(self, app, limits: Limits, workers: Workers, metrics, root_path: str):
        self.app, self.limits, self.workers, self.metrics, self.buffered = app, limits, workers, metrics, 0
        self.root_path = root_path

    async def __call__(self, scope, receive, send) -> None:
        headers = dict(scope["headers"])
        offered = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = offered if re.fullmatch(r"[\w.-]{1,64}", offered, re.ASCII) else uuid.uuid4().hex
        path = scope["path"]
        if self.root_path and path.startswith(self.root_path + "/"):  # a proxy may strip the prefix or leave it
            path = path[len(self.root_path) :]
        facts = {"request_id": request_id, "method": scope["method"], "path": path[:200], "status": 499, "bytes": 0}
        method = "GET" if scope["method"] == "HEAD" else scope["method"]  # Uvicorn leaves the body out
        scope = {**scope, "method": method, "root_path": self.root_path, "path": self.root_path + path, "facts": facts}
        started = time.perf_counter()

        async def answer(message) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                extra = {"x-request-id": request_id, **SAFE_HEADERS}
                if message["status"] == 503:
                    extra["retry-after"] = "1"
                message["headers"] += [(name.encode(), value.encode()) for name, value in extra.items()]
            await send(message)

        async def refuse(status: int, sentence: str) -> None:
            if facts["status"] == 499:  # no answer has begun
                await say_error(request_id, status, sentence)(scope, receive, answer)

        try:
            if self.root_path and path == self.root_path:  # the page's own addresses are relative to "/"
                await RedirectResponse(path + "/")(scope, receive, answer)
            elif method == "POST":
                await self._take_in(scope, headers, receive, answer)
            else:
                await self.app(scope, receive, answer)
        except ClientDisconnect:
            pass  # 499, as nginx calls it: nobody is there to hear more
        except Refused as refusal:
            await refuse(refusal.status, refusal.sentence)
        except asyncio.CancelledError:
            await refuse(503, "the server is stopping; try again")
        except Exception:
            log.exception(json.dumps({"request_id": request_id, "event": "failed"}))  # the app has said so
        finally:
            facts["ms"] = round(1000 * (time.perf_counter() - started), 1)
            self.metrics.count(facts)
            log.info(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}))

    async def _take_in(self, scope, headers, receive, send) -> None:
        """Read the body within the limits, then hand it to the app as `scope["body"]`."""
        limits = self.limits
        refusal = self._refuse_by_headers(headers)
        if refusal is None and self.workers.admitted >= self.workers.waiting:
            refusal = Refused(503, f"busy: {self.workers.admitted} photos are waiting; try again in a second")
        if refusal and headers.get(b"expect", b"").lower() == b"100-continue":
            raise refusal  # whoever asks first has sent nothing yet
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
            await self._answer({**scope, "body": bytes(body)}, receive, send)
        except TimeoutError:
            sentence = f"the upload took longer than {limits.body_seconds:.0f} s"
            raise refusal or Refused(408, sentence) from None
        finally:
            self.buffered -= len(body)

    async def _answer(self, scope, receive, send) -> None:
        seconds = self.limits.answer_seconds
        try:
            async with asyncio.timeout(seconds):
                await self.app(scope, receive, send)
        except TimeoutError:
            raise Refused(503, f"no answer within {seconds:.0f} s; try again later, or with fewer photos") from None

    def _refuse_by_headers(self, headers) -> Refused | None:
        length = headers.get(b"content-length", b"0")
        if len(length) > 15 or int(length) > self.limits.body:  # Python refuses numbers of thousands of digits
            return Refused(413, f"the request is larger than {self.limits.body / 2**20:.0f} MB")
        content_type = headers.get(b"content-type", b"").decode("latin-1").lower()
        if not content_type.startswith("multipart/form-data"):
            return Refused(415, f"send multipart/form-data with a photo, not {content_type or 'a body of no type'}")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            return Refused(415, "send the form as it is, without Content-Encoding")
        return None


def read_form(scope) -> list[tuple[str, str | None, bytes]]:
    """Return the parts of a request's form in their order: name, filename (None for a plain field), content.

    Raises Refused for a form that is damaged or incomplete.
    """
    kind = Message()
    kind["content-type"] = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
    boundary = kind.get_boundary()
    if not boundary:
        raise Refused(400, "the Content-Type names no boundary")
    parts: list[tuple[str, str | None, bytes]] = []
    names, head, content, ended = [], Message(), bytearray(), []

    def keep_header(data: bytes, start: int, stop: int) -> None:  # all of it, as the parser gets the body at once
        head[names.pop()] = data[start:stop].decode("utf-8", "replace")

    def begin() -> None:
        if len(parts) > MOST_PARTS:
            raise Refused(400, f"the form has more than {MOST_PARTS} parts; send fewer photos")
        head.__init__()
        content.clear()

    def end() -> None:
        name = head.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise Refused(400, "a part of the form has no name")
        if head.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
            raise Refused(400, f"field {name!r}: send the bytes as they are, without Content-Transfer-Encoding")
        parts.append((name, head.get_filename(), bytes(content)))

    callbacks = {
        "on_part_begin": begin,
        "on_header_field": lambda data, start, stop: names.append(data[start:stop].decode("latin-1")),
        "on_header_value": keep_header,
        "on_part_data": lambda data, start, stop: content.extend(memoryview(data)[start:stop]),
        "on_part_end": end,
        "on_end": lambda: ended.append(True),
    }
    try:
        MultipartParser(boundary, callbacks, max_header_size=16_384).write(scope["body"])
    except ValueError as error:  # MultipartParseError is one
        raise Refused(400, f"the form cannot be read: {error}") from None
    if not ended:
        raise Refused(400, "the form cannot be read: its end is missing")
    return parts


class Pieces(h11.Connection):
    """A connection that refuses a body in tiny pieces: each costs the server as much as a small request."""

    pieces = size = 0

    def next_event(self):
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.pieces = self.size = 0
        elif isinstance(event, h11.Data):
            self.pieces, self.size = self.pieces + 1, self.size + len(event.data)
            if self.pieces > 1_000 + self.size // 64:
                raise h11.RemoteProtocolError("a body in tiny pieces")
        return event


class Protocol(H11Protocol):
    """Uvicorn's protocol with a deadline for everything that a connection waits for."""

    limits = Limits()
    most = 1_000  # connections at once
    timer = None

    def connection_made(self, transport):
        self.conn = Pieces(h11.SERVER)
        super().connection_made(transport)
        self.since = self.loop.time()
        self._end_within(self.limits.body_seconds)
        kept = [one for one in self.connections if not one.transport.is_closing()]
        if len(kept) > self.most:
            idle = [one for one in kept if one.resting and one is not self]
            rare.warning("too many connections: %d; the one that rested longest is closed", len(kept))
            (min(idle, key=lambda one: one.since) if idle else self).transport.abort()

    @property
    def resting(self) -> bool:
        """Whether no request is being read or answered."""
        return self.cycle is None or self.cycle.response_complete

    def handle_events(self):
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.resting:
            self._end_within(self.limits.body_seconds + self.limits.answer_seconds + 5)

    def on_response_complete(self):
        super().on_response_complete()
        if self.resting:
            self.since = self.loop.time()
            # Uvicorn's own clock stops at the first byte, also of one who goes on sending after the answer.
            self._end_within(self.limits.body_seconds)

    def eof_received(self):
        if self.resting or self.conn.their_state not in (h11.DONE, h11.MUST_CLOSE):
            return None  # asyncio closes the connection
        # Whoever has asked all may end its own side: the answer still goes out, and then the connection ends.
        self.cycle.keep_alive = False
        return True

    def connection_lost(self, exc):
        super().connection_lost(exc)
        if self.timer:
            self.timer.cancel()

    def send_400_response(self, msg):
        self._say(400, "this is not HTTP/1.1 as this server understands it")

    def _end_within(self, seconds: float) -> None:
        if self.timer:
            self.timer.cancel()
        self.timer = self.loop.call_later(seconds, self._end)

    def _end(self) -> None:
        if not self.transport.is_closing() and self.resting and self.conn.their_state is h11.IDLE:
            self._say(408, f"no request came within {self.limits.body_seconds:.0f} s")
            self._end_within(1.0)  # for one who does not read
        else:
            self.transport.abort()

    def _say(self, status: int, sentence: str) -> None:
        body = json.dumps({"error": sentence, "request_id": uuid.uuid4().hex}).encode()
        head = f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


def bounded_protocol(limits: Limits) -> type[Protocol]:
    """Return the protocol with these limits; raise this process's limit of open files as far as it may."""
    most = limits.connections
    try:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        allowed = most + 1_000 if hard == resource.RLIM_INFINITY else min(hard, most + 1_000)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        most = max(4, min(most, allowed - len(os.listdir("/proc/self/fd")) - RESERVED_FILES))
    except (ImportError, OSError, ValueError):  # not on this system
        pass
    return type("BoundedProtocol", (Protocol,), {"limits": limits, "most": most})


class OnceAMinute(logging.Filter):
    """Let the same complaint through once a minute: each of thousands of connections may cause it."""

    def __init__(self):
        super().__init__()
        self.last: dict[str, float] = {}

    def filter(self, record) -> bool:
        now, record.exc_info = time.monotonic(), None  # a traceback of asyncio's own says nothing
        if now - self.last.get(str(record.msg), -60.0) < 60.0:
            return False
        self.last[str(record.msg)] = now
        return True


rare = logging.getLogger("carspotter.server.connections")


def say_error(request_id: str, status: int, sentence: str, headers=None) -> JSONResponse:
    return JSONResponse({"error": sentence, "request_id": request_id}, status, headers)
