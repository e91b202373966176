"""Workers of one unit, started when they are needed and kept warm."""

import threading
from collections.abc import Callable
from typing import Any

from . import intake
from .worker import Worker


class Pool:
    """Grade submissions of one unit from any number of threads.

    Each thread that grades has a worker to itself, so there are never more workers than
    submissions at a time.

    Args:
        start: starts a worker
    """

    def __init__(self, start: Callable[[], Worker]) -> None:
        self.start = start
        self.idle: list[Worker] = []
        self.closed = False
        self.lock = threading.Lock()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def grade(self, content: intake.Content) -> dict[str, Any]:
        """Grade what was handed in; the same bytes give the same result."""
        with self.lock:
            worker = self.idle.pop() if self.idle else None
        worker = worker or self.start()
        try:
            return worker.grade(content)
        finally:
            self._give_back(worker)

    def _give_back(self, worker: Worker) -> None:
        with self.lock:
            if not self.closed:
                self.idle.append(worker)
                return
        worker.close()

    def close(self) -> None:
        """End the workers; one that is still grading ends when it has done so."""
        with self.lock:
            self.closed = True
            idle, self.idle = self.idle, []
        for worker in idle:
            worker.close()
