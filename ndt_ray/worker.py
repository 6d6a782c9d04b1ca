"""What one worker does with one pack: claim it, go on where it stood, train, commit; the same inline and on Ray."""

import functools
import gc
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from ndt_ray import cluster, native, registry
from ndt_ray.catalogue.calibration import pack_timer
from ndt_ray.data import Dataset, load
from ndt_ray.jobs import ForeignFingerprint, Job, Outcome
from ndt_ray.lanes.numerics import configure, fingerprint, pick_device
from ndt_ray.models import build, load_user_factory
from ndt_ray.models.build import Factory
from ndt_ray.sink import Arrays
from ndt_ray.spec import Trial
from ndt_ray.store.manifests import newest
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.sweep import Sweep
from ndt_ray.store.writer import PackWriter
from ndt_ray.train import Pack, train_pack

Report = Callable[[dict[str, Any]], None]
State = Callable[[], Arrays]

POLL_SECONDS = 0.5
POLL_SHARE = 0.01
"""Of the time, at most, that asking an object store may take, at 10-100 ms a request."""
MOST_POLL_SECONDS = 5.0
REPORT_SECONDS = 2.0
DRAIN_COMMIT_SECONDS = 10.0
"""Between commits on a node that is about to go: its end may come before the notice said."""

log = logging.getLogger(__name__)


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


@contextmanager
def prepared(gpus: float) -> Iterator[torch.device]:
    """The device of a pack, with this process as every pack finds it, whatever a user's model in another one did to it.

    Nothing of ours draws from the global generators, but a user's module may. Outside, they are as they were: a
    sweep may be run from a notebook.
    """
    device, threads, limits = pick_device(gpus), torch.get_num_threads(), threadpool_limits()
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        configure(device)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.set_flush_denormal(False)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        if device.type == "cuda" and gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus)  # Ray counts GPUs, it does not divide their memory
        yield device
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])  # noqa: NPY002
        random.setstate(generators[2])
        limits.restore_original_limits()
        torch.set_num_threads(threads)
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()  # other packs share the card


def run_pack(job: Job, report: Report) -> Outcome:
    """Runs a pack to its end, or until the sweep's stop file asks to commit and leave.

    Raises StoreError, DataError or SpecError as they come; ForeignFingerprint where another kind of machine began the
    pack; Superseded where another worker has taken it over.
    """
    store = open_store(job.store)
    folder = Sweep(store.location, job.sweep)
    if folder.stop_requested():  # before anything is claimed
        return Outcome(job.pack, "stopped", 0)
    with prepared(job.gpus) as device:
        return _run(job, folder, store, device, report)


def _run(job: Job, folder: Sweep, store: Store, device: torch.device, report: Report) -> Outcome:
    before = newest(store.location, job.sweep, job.pack)
    restart = before is not None and before.generation <= job.begin_after
    begun_on = None if before is None or restart else before.fingerprint
    with native.as_recorded(begun_on):
        return _go_on(job, folder, store, device, report, restart)


def _go_on(job: Job, folder: Sweep, store: Store, device: torch.device, report: Report, restart: bool) -> Outcome:
    trials = job.trials
    mark = f"{trials[0].engine} {fingerprint(device)}"
    ids = tuple(t.trial_id for t in trials)
    with PackWriter(store, job.sweep, job.pack, trials=ids, fingerprint=mark, restart=restart) as writer:
        if writer.finished:
            return Outcome(job.pack, "already", writer.step)
        if writer.resume is not None and writer.fingerprint_before != mark:
            raise ForeignFingerprint(
                f"pack {job.pack} stands at step {writer.resume[0]} of a run on '{writer.fingerprint_before}', and "
                f"this machine is '{mark}': a trial never mixes two. Run it there, or begin it again with --restart"
            )
        should_stop = functools.partial(_should_stop, folder)
        sink = StoreSink(writer, job.pack, report, should_stop, node_goes, local=store.location.local)
        finished = train_pack(make_pack(trials, job.cells, device), sink, writer.resume)
        return Outcome(job.pack, "finished" if finished else "stopped", writer.step, tuple(sink.failed))


def _should_stop(folder: Sweep) -> bool:
    """A drain lets running packs end: only packs that have not begun heed it."""
    return folder.stop_requested() == "stop"


def node_goes() -> bool:
    """Whether this node is being taken away. A head that does not answer is not asked to: training goes on."""
    try:
        return cluster.draining()
    except Exception as error:
        log.warning("the cluster does not say whether this node is draining: %s", cluster.first_line(error))
        return False


class StoreSink:
    """A `train.Sink` that writes to the store, reports now and then, and asks whether to stop."""

    def __init__(
        self,
        writer: PackWriter,
        pack: str,
        report: Report,
        should_stop: Callable[[], bool],
        draining: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        local: bool = True,
    ) -> None:
        self.local = local
        self.writer, self.pack, self.report, self.clock = writer, pack, report, clock
        self.should_stop, self.draining = should_stop, draining
        self.last_report = self.last_commit = clock()
        self.next_poll = self.last_report + POLL_SECONDS
        self.going = False
        self.failed: list[tuple[str, str]] = []

    def rows(self, table: str, columns: Mapping[str, Any]) -> None:
        if table == "outcomes":
            ended = zip(columns["trial_id"], columns["status"], columns["error"], strict=True)
            self.failed = [(trial, error or status) for trial, status, error in ended if status != "finished"]
        self.writer.rows(table, columns)

    def checkpoint(self, trial_id: str, step: int, tensors: Arrays, reason: str) -> None:
        self.writer.checkpoint(trial_id, step, tensors, reason)

    def heartbeat(self, step: int, state: State, progress: Mapping[str, float]) -> bool:
        now = self.clock()
        stop, notice = self._poll(now) if now >= self.next_poll else (False, False)
        late = self.going and now - self.last_commit >= DRAIN_COMMIT_SECONDS
        if stop or notice or late or self.writer.should_commit():
            self.writer.commit(step, state())
            self.last_commit = self.clock()
        if now - self.last_report >= REPORT_SECONDS:
            self.last_report = now
            self.report({**progress, "pack": self.pack})
        return stop

    def _poll(self, now: float) -> tuple[bool, bool]:
        """Whether to stop, and whether the node's end has just been announced."""
        stop, before = self.should_stop(), self.going
        self.going = before or self.draining()
        after = self.clock()
        slow = 0.0 if self.local else min((after - now) / POLL_SHARE, MOST_POLL_SECONDS)
        self.next_poll = after + max(POLL_SECONDS, slow)
        return stop, self.going and not before

    def commit(self, step: int, state: State, finished: bool) -> None:
        self.writer.commit(step, None if finished else state(), finished)


class _Nowhere:
    """A sink that keeps nothing: what a calibration times."""

    def rows(self, table: str, columns: Mapping[str, Any]) -> None:
        pass

    def checkpoint(self, trial_id: str, step: int, tensors: Arrays, reason: str) -> None:
        pass

    def heartbeat(self, step: int, state: State, progress: Mapping[str, float]) -> bool:
        return False

    def commit(self, step: int, state: State, finished: bool) -> None:
        pass


def train_nowhere(trials: list[Trial]) -> None:
    """Trains and measures a pack whose rows nobody wants."""
    with prepared(0.0) as device:
        train_pack(make_pack(trials, tuple(t.cell for t in trials), device), _Nowhere())


time_pack = pack_timer(train_nowhere)
"""What a plan times this machine with."""
