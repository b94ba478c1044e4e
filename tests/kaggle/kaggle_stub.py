"""A stand-in for Kaggle's service on loopback, to which the real client is led as through a proxy.

`KAGGLE_API_ENVIRONMENT=LOCALHOST` makes the client speak to http://localhost/api/v1, and `http_proxy` sends that here,
to a port of our own. Requests are remembered in `calls`; `faults` makes the next answers of a service go wrong.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class KaggleStub:
    """One user, `tester`, with the token `good-token` and the key `good-key`; data sets and notebooks in memory."""

    def __init__(self):
        self.files: dict[str, bytes] = {}  # "owner/slug" -> zip
        self.private: set[str] = set()
        self.uploads: dict[str, bytes] = {}
        self.datasets: dict[str, list[dict]] = defaultdict(list)
        self.notebooks: dict[str, dict] = {}
        self.calls: list[tuple[str, dict]] = []
        self.faults: dict[str, list] = defaultdict(list)  # service -> status codes, "cut" or "hang"
        self.ranges: list[str | None] = []
        self.ended = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": self}))
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> KaggleStub:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        proxy = f"http://127.0.0.1:{self.server.server_port}"
        names = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"), proxy)
        return names | {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "no_proxy": "", "NO_PROXY": ""}

    def called(self, service: str) -> list[dict]:
        return [body for name, body in self.calls if name == service]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: KaggleStub

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        service = self.path.rsplit("/", 1)[-1]
        self.stub.calls.append((service, body))
        if self._goes_wrong(service):
            return
        known = self._who() == "tester"
        if service == "IntrospectToken":
            active = body["token"] == "good-token"
            self._json({"active": active, "username": "tester"} if active else {"active": False})
        elif service in ("GetDatasetMetadata", "DownloadDataset"):
            name = f"{body['ownerSlug']}/{body['datasetSlug']}"
            if name not in self.stub.files:
                self._refuse(404)
            elif name in self.stub.private and not known:
                self._refuse(403)
            elif service == "GetDatasetMetadata":
                self._json({"info": {"title": name, "licenses": [{"name": "unknown"}]}})
            else:
                self.send_response(302)
                self.send_header("Location", f"http://localhost/storage/{name}")
                self.send_header("Content-Length", "0")
                self.end_headers()
        elif not known:
            self._refuse(401)
        elif service == "GetDatasetStatus":
            name = f"{body['ownerSlug']}/{body['datasetSlug']}"
            self._json({"status": "ready"}) if name in self.stub.datasets else self._refuse(404)
        elif service == "StartBlobUpload":
            token = f"token-{len(self.stub.calls)}-{body['name']}"
            self._json({"token": token, "createUrl": f"http://localhost/upload/{token}"})
        elif service in ("CreateDataset", "CreateDatasetVersion"):
            inner = body.get("body", body)
            name = f"{body['ownerSlug']}/{body.get('slug') or body.get('datasetSlug')}"
            self.stub.datasets[name].append(inner | {"service": service})
            self._json({"status": "ok", "url": f"https://www.kaggle.com/datasets/{name}", "ref": name})
        elif service == "SaveKernel":
            self.stub.notebooks[body["slug"]] = body
            sources = [
                name for name in body["datasetDataSources"] if name not in {*self.stub.datasets, *self.stub.files}
            ]
            url = f"https://www.kaggle.com/code/{body['slug']}"
            self._json({"versionNumber": 1, "url": url, "ref": body["slug"], "invalidDatasetSources": sources})
        else:
            self._refuse(404)

    def do_PUT(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._goes_wrong("upload"):
            self.stub.uploads[self.path.rsplit("/", 1)[-1]] = content
            self._json({})

    def do_GET(self):
        content = self.stub.files["/".join(self.path.split("/")[-2:])]
        wanted = self.headers.get("Range")
        self.stub.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        faults = self.stub.faults["storage"]
        cut = bool(faults) and faults.pop(0) == "cut"
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()[:16]}"')
        self.send_header("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(content[start : start + (len(content) - start) // 2] if cut else content[start:])
        if cut:
            self.close_connection = True

    def _who(self) -> str | None:
        kind, _, secret = self.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            return "tester" if base64.b64decode(secret) == b"tester:good-key" else None
        return "tester" if secret == "good-token" else None

    def _goes_wrong(self, service: str) -> bool:
        faults = self.stub.faults[service]
        if not faults:
            return False
        fault = faults.pop(0)
        if fault == "cut":
            self.close_connection = True
        elif fault == "hang":
            self.stub.ended.wait()
        else:
            self._refuse(fault)
        return True

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, answer: dict) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
