"""The Tune callback that turns what Tune says into a sweep's events."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Callback

from ndt_ray.progress import Event, event
from ndt_ray.worker import Job, failure

log = logging.getLogger(__name__)


class Relay(Callback):  # type: ignore[misc]
    """Hands events on from a thread of its own: an exception in a Tune callback would end the whole experiment, and a
    slow one would hold up every trial."""

    def __init__(self, jobs: Mapping[str, Job], emit: Callable[[Event], None]) -> None:
        self.jobs, self.emit = jobs, emit
        self.ended: set[str] = set()
        self.queue: queue.Queue[Event | None] = queue.Queue()
        self.thread = threading.Thread(target=self._drain, name="ndt-events", daemon=True)
        self.thread.start()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that is never made; a queue and a thread cannot be.
        return {}

    def _drain(self) -> None:
        while (e := self.queue.get()) is not None:
            try:
                self.emit(e)
            except Exception:
                log.exception("event %s could not be shown or logged", e.get("event"))

    def close(self) -> None:
        """Waits until every event has been handed on; packs that Tune never ended are told as stopped."""
        for pack in self.jobs.keys() - self.ended:
            self.queue.put(event("stop", pack=pack))
        self.queue.put(None)
        self.thread.join()

    def _end(self, e: Event) -> None:
        if e["pack"] not in self.ended:
            self.ended.add(e["pack"])
            self.queue.put(e)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.queue.put(event("start", pack=trial.config["pack"]))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        e = result.get("ndt")
        if e and e["event"] == "progress":
            self.queue.put(e)
        elif e:
            self._end(e)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        job = self.jobs[trial.config["pack"]]
        self.queue.put(event("retry", pack=job.pack, cell=job.cells[0], error=_said(trial)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        job = self.jobs[trial.config["pack"]]
        self._end(failure(job, _said(trial)))


def _said(trial: Any) -> str:
    """The last line of a Tune trial's error."""
    error = trial.get_error() if hasattr(trial, "get_error") else None
    lines = [line for line in str(error or "the worker died").strip().splitlines() if line.strip()]
    return lines[-1] if lines else "the worker died"
