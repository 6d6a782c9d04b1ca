"""One driver a sweep: a note of who runs it, so that a second `ndt sweep` on the same machine is told.

A courtesy, not a lock: packs are fenced by generations, so that two drivers do no harm but take packs from each other.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import psutil

from ndt_ray.errors import StoreError
from ndt_ray.store.sweep import Sweep


@dataclass(frozen=True)
class Driver:
    """A process that runs a sweep; `began` (s since the epoch) tells it from a later one of the same number."""

    host: str
    pid: int
    began: float

    @property
    def alive(self) -> bool:
        """Whether it runs on this machine; of others nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.began) < 1.0)
        except psutil.Error:
            return False


def driver(folder: Sweep) -> Driver | None:
    """Who last took the sweep and has not let go of it; it may have been killed since."""
    try:
        return Driver(**json.loads(folder.location.read(_path(folder))))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def refuse(folder: Sweep, doing: str) -> None:
    """StoreError if a live process of this machine runs the sweep."""
    other = driver(folder)
    if other is not None and other.alive and other.pid != os.getpid():
        since = time.strftime("%H:%M:%S", time.localtime(other.began))
        raise StoreError(
            f"sweep {folder.name} is being run by process {other.pid} since {since}: it cannot be {doing} meanwhile - "
            f"wait for it, or stop it (`ndt stop {folder.name}`)"
        )


@contextmanager
def held(folder: Sweep) -> Iterator[None]:
    """This process is the sweep's driver inside; StoreError if another is."""
    refuse(folder, "run twice")
    own = Driver(socket.gethostname(), os.getpid(), psutil.Process().create_time())
    folder.location.write(_path(folder), json.dumps(asdict(own)).encode(), durable=False)
    try:
        yield
    finally:
        if driver(folder) == own:
            folder.location.delete(_path(folder))


def _path(folder: Sweep) -> str:
    return f"{folder.folder}/driver.json"
