"""One pack as it is sent to a worker, and how an attempt at it ended: plain values, no torch and no Ray."""

import json
import shlex
import traceback
from dataclasses import asdict, dataclass
from typing import Literal

from ndt_ray.errors import NdtError
from ndt_ray.plan import Lane, Pack
from ndt_ray.progress import Event, event
from ndt_ray.spec import Trial


class ForeignFingerprint(NdtError):
    """A half-done pack whose bits were computed elsewhere: it waits for such a machine, or begins again on request."""


@dataclass(frozen=True)
class Job:
    """One pack and where its results go; `first` (as JSON has it) and `lanes` are those of `plan.Pack`."""

    store: str
    sweep: str
    pack: str
    first: str
    lanes: tuple[Lane, ...]
    gpus: float = 0.0
    begin_after: int = 0
    """What writers of generations up to this one have committed is given up."""

    @property
    def cell(self) -> str:
        """Of its first trial."""
        return self.lanes[0].cell

    @property
    def cells(self) -> tuple[str, ...]:
        return tuple(lane.cell for lane in self.lanes)

    @property
    def trials(self) -> list[Trial]:
        """The trials, made anew at each call, in the order of their lanes."""
        return Pack(self.pack, "", Trial.model_validate_json(self.first), self.lanes).trials

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> "Job":
        value = json.loads(data)
        lanes = tuple(Lane(i, cell, (s[0], s[1], s[2], s[3]), *rest) for i, cell, s, *rest in value.pop("lanes"))
        return cls(lanes=lanes, **value)


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a pack ended; `failed` names lanes that raised or diverged, each with why."""

    pack: str
    status: Literal["finished", "stopped", "already"]
    step: int
    failed: tuple[tuple[str, str], ...] = ()

    def event(self, job: Job) -> Event:
        """As the event that ends the pack."""
        if self.status == "stopped":
            return event("stop", pack=self.pack, step=self.step)
        found = event("finish", pack=self.pack, step=self.step, lanes_failed=[list(lane) for lane in self.failed])
        if self.failed:
            found |= {"cell": job.cell, "reproduce": reproduce(job, restart=True)}
        return found


def failure(job: Job, error: BaseException | str) -> Event:
    """The event of a pack that is given up, with the command that reproduces it here."""
    known = isinstance(error, NdtError | str)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    code = error.exit_code if isinstance(error, NdtError) else 1
    found = event("fail", pack=job.pack, cell=job.cell, error=text.strip(), code=code, reproduce=reproduce(job))
    if isinstance(error, BaseException) and not known:
        found["traceback"] = "".join(traceback.format_exception(error))
    return found


def reproduce(job: Job, restart: bool = False) -> str:
    """The command that runs this pack alone, in one process; the stored spec holds the overrides of the launch."""
    local = "://" not in job.store
    spec = f"{job.store}/sweeps/{job.sweep}/spec.yaml" if local else job.sweep
    words = ["ndt", "sweep", spec, "--store", job.store, "--executor", "inline", "--pack", job.pack]
    return shlex.join([*words, "--restart"] if restart else words)
