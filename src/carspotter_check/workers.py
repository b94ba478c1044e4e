"""Threads that compute, and the fair queue before them: work is weighed in units of about one photo."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

SMOOTHING = 0.05  # weight of the newest unit in the running mean of seconds


class Refused(Exception):
    """A request that is turned away: status and sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Workers:
    """`threads` threads and at most `waiting` admitted units of work, each about as much as one photo.

    Requests share the threads fairly (start-time fair queueing): the k-th unit of a request comes k places after the
    present, so that a single photo overtakes a batch that was there before it, and neither starves.
    """

    def __init__(self, threads: int, waiting: int, name: str = "check"):
        self.count, self.waiting = threads, waiting
        self.admitted = 0  # units waiting or computed now
        self.mean_seconds = 0.02
        self._began: dict[int, float] = {}  # when each busy thread took its unit
        self._queue: list[tuple[float, int, Future, Callable[[], Any]]] = []
        self._numbers, self._now = itertools.count(), 0.0
        self._changed = threading.Condition()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def expected_seconds(self) -> float:
        """Return how long a unit that came now would have to wait, as far as one can tell."""
        in_order = self.admitted * self.mean_seconds / self.count
        began = list(self._began.values())
        stuck = time.monotonic() - max(began) if len(began) == self.count else 0.0
        return max(in_order, stuck)

    async def run(self, units: Sequence[Callable[[], Any]]) -> list[Any]:
        """Compute the units and return their results in order; what has not begun when it is cancelled never does.

        Raises Refused when there is no room for all of them, and what a unit raises.
        """
        if self.admitted + len(units) > self.waiting:
            raise Refused(503, f"busy: {self.admitted} photos are waiting; try again in a second")
        futures = [Future() for _ in units]
        self.admitted += len(units)
        with self._changed:
            for place, (future, unit) in enumerate(zip(futures, units, strict=True)):
                heapq.heappush(self._queue, (self._now + place, next(self._numbers), future, unit))
            self._changed.notify(len(units))
        waited = [asyncio.wrap_future(future) for future in futures]
        for future in waited:
            future.add_done_callback(self._leave)
        return await asyncio.gather(*waited)

    def _leave(self, future: asyncio.Future) -> None:
        self.admitted -= 1
        if not future.cancelled():
            future.exception()  # heard, also when another unit of the request had failed before

    def _work(self) -> None:
        me = threading.get_ident()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                self._now, _, future, unit = heapq.heappop(self._queue)
            if not future.set_running_or_notify_cancel():  # nobody waits for it any more
                continue
            self._began[me] = started = time.monotonic()
            try:
                settle = partial(future.set_result, unit())
            except BaseException as error:  # it belongs to the request
                settle = partial(future.set_exception, error)
            self._began.pop(me)
            self.mean_seconds += SMOOTHING * (time.monotonic() - started - self.mean_seconds)
            settle()


def usable_cores() -> int:
    """Return how many cores this process may use: its affinity, and its control group's share of processor time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return cores
