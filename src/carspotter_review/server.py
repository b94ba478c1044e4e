"""The review page in a local browser: on loopback or behind a token, photos by their hash only."""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from urllib.parse import parse_qsl, urlsplit

import pandas as pd

from carspotter.paths import Study
from carspotter.photos.decoding import UnreadablePhoto
from carspotter_review.session import EDGES, Session

BODY_LIMIT = 4096  # bytes; a decision has about 200


def serve_reviews(
    study: Study,
    reviewer: str,
    port: int = 0,
    host: str = "127.0.0.1",
    quiz: int | None = None,
    audit: int | None = None,
    seed: int = 0,
    features: pd.DataFrame | None = None,
    public_url: str | None = None,
) -> ReviewServer:
    """Serve the review page; with `quiz` or `audit`, that many photos of the quiz or the audit drawn by `seed`.

    Use it as a context manager: `with serve_reviews(…) as server: print(server.url); server.wait()`. Port 0 takes a
    free one. Off loopback the URL carries a random token, without which nothing is answered. `features` (float,
    indexed by sha256) finds the nearest kept photos; without them photos of the same listing, duplicates and good
    examples are shown. `public_url` is the address under which a proxy (HTTPS, a prefix) hands requests on. Raises
    ValueError for a nameless reviewer and OSError for a port that is taken.
    """
    return ReviewServer(Session(study, reviewer, quiz, audit, seed, features), host, port, public_url)


class ReviewServer(ThreadingHTTPServer):
    """The page of a session on loopback, or elsewhere behind a token; starts with `with`, answers until it ends."""

    daemon_threads = True

    def __init__(self, session: Session, host: str, port: int, public_url: str | None = None):
        self.session = session
        # Behind a proxy everybody who reaches it reaches this page, though it listens on loopback.
        self.token = None if _is_loopback(host) and not public_url else secrets.token_urlsafe(24)
        # Names under which a browser may ask. A page elsewhere that points its own name at this machine (DNS
        # rebinding) is turned away; bound to every address we cannot know our names, and the token alone decides.
        self.names = None if host in ("0.0.0.0", "::", "") else {host, "127.0.0.1", "localhost", "::1"}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise OSError(
                f"port {port} of {host} cannot be opened ({error.strerror}); name another --port, or 0, or --host"
            ) from error
        name = f"[{host}]" if ":" in host else host
        address = f"{public_url.rstrip('/')}/" if public_url else f"http://{name}:{self.server_port}/"
        self.url = address + (f"?token={self.token}" if self.token else "")
        public = urlsplit(public_url or "")
        self.public_origin = f"{public.scheme}://{public.netloc}"
        if public_url and self.names is not None:
            self.names.add(public.hostname)
        self.page = resources.files("carspotter_review").joinpath("page.html").read_text(encoding="utf-8")

    def __enter__(self) -> ReviewServer:
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def wait(self) -> None:
        """Answer until somebody interrupts."""
        self.thread.join()

    def handle_error(self, request, client_address) -> None:
        """Pass over browsers that hang up while a picture is on its way; print the rest."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Refusal(Exception):
    """An answer that is not 200."""

    def __init__(self, status: HTTPStatus, text: str):
        super().__init__(text)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: ReviewServer

    def do_GET(self) -> None:
        self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def log_message(self, *_) -> None:
        """Say nothing: the terminal is for the reviewer, and the decisions are logged already."""

    def _respond(self, answer) -> None:
        try:
            try:
                self.address = urlsplit(self.path)
                asked_for = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            except ValueError:
                raise _Refusal(HTTPStatus.BAD_REQUEST, "not an address") from None
            if self.server.names is not None and asked_for not in self.server.names:
                raise _Refusal(HTTPStatus.MISDIRECTED_REQUEST, f"this server does not answer for {asked_for}")
            self.query = dict(parse_qsl(self.address.query, keep_blank_values=True))
            if not self._let_in():
                answer()
        except _Refusal as refusal:
            self.close_connection = True  # a body may still be unread
            self._send(json.dumps({"error": str(refusal)}).encode(), "application/json", refusal.status)

    def _let_in(self) -> bool:
        """Check the token; True when the visitor was sent on, from the URL with the token to the one without."""
        token = self.server.token
        if token is None:
            return False
        given = self.query.get("token", "")
        if self.command == "GET" and hmac.compare_digest(given.encode(), token.encode()):
            headers = {"Location": "./", "Set-Cookie": f"carspotter={token}; HttpOnly; SameSite=Lax"}
            self._send(b"", "text/plain", HTTPStatus.SEE_OTHER, headers)
            return True
        cookies = dict(pair.strip().partition("=")[::2] for pair in self.headers.get("Cookie", "").split(";"))
        if not hmac.compare_digest(cookies.get("carspotter", "").encode(), token.encode()):
            raise _Refusal(HTTPStatus.FORBIDDEN, "open the address with the token that the command printed")
        return False

    def _get(self) -> None:
        session, path = self.server.session, self.address.path
        if path in ("/", "/summary"):
            nonce = secrets.token_urlsafe(16)
            policy = f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'nonce-{nonce}'; "
            policy += f"script-src 'nonce-{nonce}'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
            page = self.server.page.replace("NONCE", nonce).encode()
            self._send(page, "text/html; charset=utf-8", headers={"Content-Security-Policy": policy})
        elif path == "/api/state":
            self._send_json(session.state())
        elif path == "/api/list":
            filters = {name: self.query[name] for name in ("show", "kind", "label") if name in self.query}
            self._send_json(session.list_photos(**filters))
        elif path == "/api/photos":
            numbers = [int(n) for n in self.query.get("at", "").split(",") if _is_number(n)]
            self._send_json([session.describe(n) for n in numbers[:100] if n < len(session.photos)])
        elif path == "/api/summary":
            self._send_json(session.summarize())
        elif path.startswith("/photo/"):
            self._send_photo(*path.removeprefix("/photo/").partition("/")[::2])
        else:
            raise _Refusal(HTTPStatus.NOT_FOUND, f"nothing at {path}")

    def _send_photo(self, sha256: str, size: str) -> None:
        session = self.server.session
        if sha256 not in session.files.index or size not in EDGES:
            raise _Refusal(HTTPStatus.NOT_FOUND, "no such photo")
        try:
            preview = session.preview(sha256, size)
        except FileNotFoundError:
            raise _Refusal(HTTPStatus.GONE, "this photo is no longer on this machine") from None
        except UnreadablePhoto as error:
            raise _Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, error.reason) from None
        self._send(preview, "image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    def _post(self) -> None:
        # A browser always says where a POST comes from; a page of somebody else's cannot say it was ours.
        origin = self.headers.get("Origin")
        if origin not in (f"http://{self.headers.get('Host')}", self.server.public_origin):
            raise _Refusal(HTTPStatus.FORBIDDEN, f"decisions are taken from this page only, not from {origin}")
        if self.headers.get_content_type() != "application/json":
            raise _Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "decisions are sent as application/json")
        length = self.headers.get("Content-Length", "")
        if not _is_number(length) or int(length) > BODY_LIMIT:
            raise _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a decision has at most {BODY_LIMIT} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)))
            if not isinstance(body, dict):
                raise ValueError("a decision is a JSON object")
            if self.address.path == "/api/decide":
                self._send_json(self.server.session.decide(body))
            elif self.address.path == "/api/undo":
                self._send_json(self.server.session.undo())
            else:
                raise _Refusal(HTTPStatus.NOT_FOUND, f"nothing at {self.address.path}")
        except (ValueError, RecursionError) as error:  # brackets within brackets without end
            raise _Refusal(HTTPStatus.BAD_REQUEST, str(error)) from None
        except OSError as error:
            raise _Refusal(HTTPStatus.INSUFFICIENT_STORAGE, f"not saved: {error}") from None

    def _send_json(self, answer) -> None:
        self._send(json.dumps(answer).encode(), "application/json")

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, headers: dict | None = None) -> None:
        self.send_response(status)
        standard = {"Content-Type": kind, "Content-Length": len(body), "Cache-Control": "no-store"}
        standard |= {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
        for name, value in (standard | {"Referrer-Policy": "no-referrer"} | (headers or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10  # Python refuses those of thousands of digits


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
