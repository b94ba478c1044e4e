"""Connections to photo hosts: they say who we are, and can be ended at any moment."""

import contextlib
import socket
import threading
import weakref
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from scraper.politeness import Busy
from scraper.site import Site


class Session(requests.Session):
    """A session that says who we are; its `adapter` knows how to end an exchange."""

    def __init__(self, site: Site):
        super().__init__()
        self.trust_env = False  # no passwords from ~/.netrc to photo hosts
        self.verify = site.request.verify and (site.request.ca_file or True)
        if not self.verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the site file asked for it
        self.headers = {
            "User-Agent": site.user_agent,
            "Accept": "image/jpeg,image/png,image/webp,image/*;q=0.8",
            "Accept-Encoding": "identity",
            **site.request.headers,
        }
        for host in {urlsplit(start.url).hostname or "" for start in site.starts}:
            domain = host if "." in host else f"{host}.local"  # as http.cookiejar names a host without a dot
            for name, value in site.request.cookies.items():
                self.cookies.set(name, value, domain=domain, path="/")
        self.adapter = _DeadlineAdapter()
        self.mount("http://", self.adapter)
        self.mount("https://", self.adapter)

    def use_cookies(self, cookies: list[dict]) -> None:
        for cookie in cookies:
            self.cookies.set(cookie["name"], cookie["value"], domain=cookie["domain"], path=cookie["path"])


class _DeadlineAdapter(HTTPAdapter):
    """Ends an exchange after a total time: a server that sends a byte now and then never trips a read timeout.

    At the deadline the connections' sockets are shut down, wherever the exchange is, headers included.
    """

    def init_poolmanager(self, *args, **kwargs) -> None:
        super().init_poolmanager(*args, **kwargs)
        self._sockets = sockets = weakref.WeakSet()
        self._lock = lock = threading.Lock()

        class Watched:
            def connect(self) -> None:
                super().connect()
                with lock:
                    sockets.add(self.sock)

            def getresponse(self):
                connection = self.sock
                response = super().getresponse()
                # Many servers hold back a body's last bytes until those before are acknowledged (Nagle), which the
                # kernel does after 40 ms unless told so. Only Linux can; the connection may be closed already.
                with contextlib.suppress(AttributeError, OSError):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                return response

        def watched(pool: type, connection: type) -> type:
            return type("Pool", (pool,), {"ConnectionCls": type("Connection", (Watched, connection), {})})

        self.poolmanager.pool_classes_by_scheme = {
            "http": watched(urllib3.HTTPConnectionPool, HTTPConnection),
            "https": watched(urllib3.HTTPSConnectionPool, HTTPSConnection),
        }

    @contextlib.contextmanager
    def deadline(self, url: str, seconds: float) -> Iterator[None]:
        """End all exchanges after `seconds`, unless the context ended before. Raises Busy then, whatever it made of it.

        An answer without a length looks whole when its socket is shut down.
        """
        passed = threading.Event()

        def end() -> None:
            passed.set()
            self.shut_down()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception:
            if not passed.is_set():
                raise
        finally:
            timer.cancel()
        if passed.is_set():
            raise Busy(f"took longer than {seconds:g} s", url)

    def shut_down(self) -> None:
        with self._lock:
            connections = list(self._sockets)
        for connection in connections:
            with contextlib.suppress(OSError):  # closed by itself in the meantime
                connection.shutdown(socket.SHUT_RDWR)
