"""The queue of a worker's contributions by reference."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from .by_reference import Job
from .contribution import WorkerLost, save
from .state import Record

if TYPE_CHECKING:
    from .cluster import Worker

log = logging.getLogger(__name__)


class AsyncQueue:
    """The requests of a worker that wait for its processing threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._waiting: list[Job] = []
        self._running: dict[int, Job] = {}
        self._changed = threading.Condition()

    def start(self, worker: Worker) -> None:
        """Start the threads, and take up what was left when the server was stopped."""
        state = worker.cluster.state
        for name in state.database_names():
            for transaction in reversed(state.transactions(name, ["STARTED"])):
                left = state.contributions(
                    transaction["id"], worker=worker.name, statuses=["IN_PROGRESS"], only_async=True
                )
                for contrib in left:
                    self._resume(worker, contrib)
        for _ in range(self._threads):
            threading.Thread(target=self._work, args=(worker,), daemon=True).start()

    def _resume(self, worker: Worker, contrib: Record) -> None:
        """Take up a contribution that a lost worker has left; one that was being loaded has failed."""
        if contrib["read_time"]:
            error = "Loading into MySQL was interrupted when the service was restarted."
            save(worker, contrib, "load", "LOAD_FAILED", f"{error} Resuming requests at this stage is not possible.")
        else:
            self.submit(Job(worker, contrib | {"start_time": 0, "tmp_file": ""}))

    def submit(self, job: Job) -> None:
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def find(self, contrib_id: int) -> Job | None:
        """The job of a contribution that waits or runs."""
        with self._changed:
            waiting = (job for job in self._waiting if job.contrib["id"] == contrib_id)
            return next(waiting, None) or self._running.get(contrib_id)

    def cancel(self, contrib_id: int) -> None:
        """Take a waiting job out of the queue (its record stays IN_PROGRESS), or ask a running one to stop."""
        job = self.find(contrib_id)
        if job is not None:
            job.cancelled = True
            with self._changed:
                if job in self._waiting:
                    self._waiting.remove(job)

    def _next(self, worker: Worker) -> Job | None:
        """The first job whose database may have one more running."""
        for job in self._waiting:
            name = job.contrib["database"]
            limit = int(worker.cluster.state.params(name, "worker-http-file-reader").get("ASYNC_PROC_LIMIT", 0))
            running = sum(other.contrib["database"] == name for other in self._running.values())
            if not limit or running < limit:
                self._waiting.remove(job)
                self._running[job.contrib["id"]] = job
                return job
        return None

    def _work(self, worker: Worker) -> None:
        while True:
            with self._changed:
                while (job := self._next(worker)) is None:
                    self._changed.wait()
            worker.up.wait()
            try:
                job.process()
            except WorkerLost:
                worker.up.wait()
                self._resume(worker, job.contrib)
            except Exception as ex:  # its record says what went wrong
                log.warning("%s: contribution %s failed: %s", worker.name, job.contrib["id"], ex)
            with self._changed:
                self._running.pop(job.contrib["id"], None)
                self._changed.notify_all()
