"""What is still to do in a crawl, for one browser or several side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from scraper.browser import Browser


class Tasks:
    """What is still to do, newest first; a task may add others. Each is called with the browser that is to do it."""

    def __init__(self, tasks: Sequence[Callable[[Browser], None]]):
        self._waiting = list(reversed(tasks))
        self._changed = threading.Condition()
        self._under_way = 0
        self._is_ended = False

    def add(self, task: Callable[[Browser], None]) -> None:
        with self._changed:
            self._waiting.append(task)
            self._changed.notify()

    def end(self) -> None:
        """Give out no more tasks."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def work(self, browser: Browser) -> None:
        """Do tasks with `browser` until none is waiting or under way with another browser."""
        while task := self._take():
            try:
                task(browser)
            finally:
                with self._changed:
                    self._under_way -= 1
                    self._changed.notify_all()

    def _take(self) -> Callable[[Browser], None] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._under_way or self._is_ended)
            if self._is_ended or not self._waiting:
                return None
            self._under_way += 1
            return self._waiting.pop()
