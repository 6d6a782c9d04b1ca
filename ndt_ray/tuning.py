"""The Tune callback that turns what Tune says into a sweep's events."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Callback

from ndt_ray.jobs import Job, failure
from ndt_ray.progress import Event, event

log = logging.getLogger(__name__)


class Relay(Callback):  # type: ignore[misc]
    """Hands events on from a thread of its own: an exception in a Tune callback would end the whole experiment, and a
    slow one would hold up every trial."""

    def __init__(self, jobs: Mapping[str, Job], emit: Callable[[Event], None]) -> None:
        self.jobs, self.emit = jobs, emit
        self.ended: set[str] = set()
        self.trouble: dict[str, Event] = {}
        """Why the last attempt at a pack ended, in the worker's own words, until the next one starts."""
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
                log.exception("event %s could not be shown", e.get("event"))

    def close(self) -> None:
        """Waits until every event has been handed on; packs that Tune never ended are told as stopped."""
        for pack in self.jobs:
            if pack not in self.ended:
                self.queue.put(event("stop", pack=pack))
        self.queue.put(None)
        self.thread.join()

    def _end(self, e: Event) -> None:
        if e["pack"] not in self.ended:
            self.ended.add(e["pack"])
            self.queue.put(e)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.trouble.pop(trial.config["pack"], None)
        self.queue.put(event("start", pack=trial.config["pack"]))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        e = result.get("ndt")
        if e is None:
            return
        if e["event"] == "progress":
            self.queue.put(e)
        elif e["event"] == "trouble":
            self.trouble[e["pack"]] = {**e, "event": "fail"}
        else:
            self._end(e)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        failed = self._failure(trial)
        self.queue.put(event("retry", pack=failed["pack"], cell=failed["cell"], error=failed["error"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(self._failure(trial))

    def _failure(self, trial: Any) -> Event:
        pack = trial.config["pack"]
        return self.trouble.get(pack) or failure(self.jobs[pack], _said(trial))


def _said(trial: Any) -> str:
    """What Tune knows of a trial's end where the worker could not say it."""
    error = trial.get_error()
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    if not lines or "ActorDiedError" in type(error).__name__ or "RayActorError" in type(error).__name__:
        return f"the worker died (killed, out of memory, or crashed): {' '.join(lines[:3])}".rstrip(": ")
    return lines[-1]
