"""What one worker does with one pack: claim it, go on where it stood, train, commit; the same inline and on Ray."""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ndt_ray import registry
from ndt_ray.data import Dataset, load
from ndt_ray.errors import NdtError
from ndt_ray.lanes.numerics import configure, fingerprint, pick_device
from ndt_ray.models import build, load_user_factory
from ndt_ray.models.build import Factory
from ndt_ray.progress import Event, event
from ndt_ray.spec import Trial
from ndt_ray.store.reader import open_store
from ndt_ray.store.sweep import Sweep
from ndt_ray.store.writer import PackWriter
from ndt_ray.train import Arrays, Pack, train_pack

Report = Callable[[dict[str, Any]], None]
STOP_POLL_SECONDS = 0.5
REPORT_SECONDS = 2.0


class ForeignFingerprint(NdtError):
    """A half-done pack whose bits were computed elsewhere: it waits for such a machine, or begins again on request."""


@dataclass(frozen=True)
class Job:
    """One pack as it is sent to a worker: plain values only."""

    store: str
    sweep: str
    pack: str
    trials: tuple[dict[str, Any], ...]
    cells: tuple[str, ...]
    gpus: float = 0.0
    restart: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Job":
        return cls(**{**value, "trials": tuple(value["trials"]), "cells": tuple(value["cells"])})


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a pack ended; `failed` counts lanes that raised or diverged."""

    pack: str
    status: Literal["finished", "stopped", "already"]
    step: int
    failed: tuple[tuple[str, str], ...] = ()


def factory_of(trial: Trial) -> Factory:
    """The model factory that a trial names: a registered one, or `file.py:function`."""
    name = trial.model.name
    found: Factory = load_user_factory(name) if ".py:" in name else registry.resolve("model", name)
    return found


def dataset_of(trial: Trial) -> Dataset:
    """The data set that a trial names."""
    return load(trial.data.name, trial.data.params)


def build_trial(data: Dataset, trial: Trial) -> nn.Module:
    """A trial's model at its initialisation."""
    return build(factory_of(trial), data.inputs, trial.model.params, trial.seed.init)


def make_pack(trials: list[Trial], cells: tuple[str, ...], device: torch.device) -> Pack:
    """Loads the data and ties it to the trials."""
    data = dataset_of(trials[0])
    return Pack(trials, functools.partial(build_trial, data), data, device, cells, fingerprint(device))


def run_pack(job: Job, report: Report, should_stop: Callable[[], bool] = lambda: False) -> Outcome:
    """Runs a pack to its end, or until the sweep's stop file (or `should_stop`) asks to commit and leave.

    Raises StoreError, DataError or SpecError as they come; a worker that another one has replaced ends with Superseded.
    """
    trials = [Trial.model_validate(t) for t in job.trials]
    device = pick_device(job.gpus)
    configure(device)
    store = open_store(job.store)
    mark = f"{trials[0].engine} {fingerprint(device)}"
    ids = tuple(t.trial_id for t in trials)
    with PackWriter(store, job.sweep, job.pack, trials=ids, fingerprint=mark, restart=job.restart) as writer:
        if writer.finished:
            return Outcome(job.pack, "already", writer.step)
        if writer.resume is not None and writer.fingerprint_before != mark:
            raise ForeignFingerprint(
                f"pack {job.pack} stands at step {writer.resume[0]} of a run on '{writer.fingerprint_before}', and "
                f"this machine is '{mark}': a trial never mixes two. Run it there, or begin it again with --restart"
            )
        folder = Sweep(store.location, job.sweep)
        if folder.stop_requested():
            return Outcome(job.pack, "stopped", writer.step)
        # A drain lets running packs end: only packs that have not begun heed it.
        sink = StoreSink(writer, job, report, lambda: should_stop() or folder.stop_requested() == "stop")
        finished = train_pack(make_pack(trials, job.cells, device), sink, writer.resume)
        return Outcome(job.pack, "finished" if finished else "stopped", writer.step, tuple(sink.failed))


class StoreSink:
    """A `train.Sink` that writes to the store, reports now and then, and asks whether to stop."""

    def __init__(self, writer: PackWriter, job: Job, report: Report, should_stop: Callable[[], bool]) -> None:
        self.writer, self.job, self.report, self.should_stop = writer, job, report, should_stop
        self.last_report = self.last_poll = time.monotonic()
        self.failed: list[tuple[str, str]] = []

    def rows(self, table: str, columns: Mapping[str, Any]) -> None:
        if table == "outcomes":
            ended = zip(columns["trial_id"], columns["status"], columns["error"], strict=True)
            self.failed = [(trial, error or status) for trial, status, error in ended if status != "finished"]
        self.writer.rows(table, columns)

    def checkpoint(self, trial_id: str, step: int, tensors: Arrays, reason: str) -> None:
        self.writer.checkpoint(trial_id, step, tensors, reason)

    def heartbeat(
        self, step: int, state: Callable[[], Mapping[str, np.ndarray]], progress: Mapping[str, float]
    ) -> bool:
        now = time.monotonic()
        stop = False
        if now - self.last_poll >= STOP_POLL_SECONDS:
            self.last_poll = now
            stop = self.should_stop()
        if stop or self.writer.should_commit():
            self.writer.commit(step, state())
        if now - self.last_report >= REPORT_SECONDS:
            self.last_report = now
            self.report({**progress, "pack": self.job.pack})
        return stop

    def commit(self, step: int, state: Callable[[], Mapping[str, np.ndarray]], finished: bool) -> None:
        self.writer.commit(step, None if finished else state(), finished)


def failure(job: Job, error: BaseException | str) -> Event:
    """The event of a pack that is given up, with the command that reproduces it here."""
    text = str(error) if isinstance(error, NdtError | str) else f"{type(error).__name__}: {error}"
    again = f"ndt sweep {job.sweep} --store {job.store} --executor inline --pack {job.pack}"
    return event("fail", pack=job.pack, cell=job.cells[0], error=text.partition("\n")[0], reproduce=again)


class _Nowhere:
    """A sink that keeps nothing: what a calibration times."""

    def rows(self, table: str, columns: Mapping[str, Any]) -> None:
        pass

    def checkpoint(self, trial_id: str, step: int, tensors: Arrays, reason: str) -> None:
        pass

    def heartbeat(
        self, step: int, state: Callable[[], Mapping[str, np.ndarray]], progress: Mapping[str, float]
    ) -> bool:
        return False

    def commit(self, step: int, state: Callable[[], Mapping[str, np.ndarray]], finished: bool) -> None:
        pass


def time_pack(trial: Trial, lanes: int, n: int) -> float:
    """CPU seconds to train `lanes` seeds of a trial for its `n` steps on this machine, recording to nowhere (a
    `calibration.Timer`)."""
    device = torch.device("cpu")
    configure(device)
    seeds = [{"init": s, "order": s, "dropout": s, "data": s} for s in range(lanes)]
    trials = [Trial.model_validate({**trial.model_dump(), "seed": seed}) for seed in seeds]
    assert trial.train.steps == n
    pack = make_pack(trials, tuple(t.cell for t in trials), device)
    began = time.process_time()
    train_pack(pack, _Nowhere())
    return time.process_time() - began
