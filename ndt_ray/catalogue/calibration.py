"""Times of single steps, measurements and evaluations on this machine: measured once, kept in a small JSON file.

The file is `calibration.json` in the cache folder (`NDT_CACHE`, else `~/.cache/ndt-ray`). An entry is keyed by what a
time depends on: machine, versions, model, data shape, batch, engine, lanes. Losing the file costs a minute.
"""

import functools
import hashlib
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ndt_ray import native
from ndt_ray.cache import cache_folder
from ndt_ray.plan.estimate import Cost
from ndt_ray.spec import Checkpoint, Evaluate, Seeds, Trial

Timer = Callable[[Trial, int, int], float]
"""(trial, lanes, n) -> seconds to train `lanes` seeds of the trial for n updates from step 0, recording to nowhere.

`trial.train.steps` is n already; loading data is not counted, building models may be.
"""

log = logging.getLogger(__name__)
FORMAT = 1
TARGET_SECONDS = 0.25
"""What a timed run should last: long enough for the clock, short enough for a plan."""
LOOP_LANES = 1
"""The loop engine's time is proportional to its lanes: so many are timed."""
TIMES = ("step", "measure", "evaluate", "coarse", "start")


class Calibration:
    """Measured costs of this machine, and what they say about models that were not measured.

    At most `budget` seconds are spent on measuring; without a `timer` none are.
    """

    def __init__(self, timer: Timer | None = None, budget: float = 10.0, path: Path | None = None) -> None:
        self.timer, self.budget = timer, budget
        self.path = path or cache_folder() / "calibration.json"
        self.entries = self._read()

    def cost(self, trial: Trial, lanes: int, device: str, family: str, guess: Cost) -> Cost:
        """The cost of a pack of `lanes` trials like `trial`: known, measured now, or the guess, corrected."""
        timed = lanes if trial.engine == "stack" else min(lanes, LOOP_LANES)
        entry = self.entries.get(self.key(trial, timed, device))
        if entry is None and self.timer is not None and self.budget > 0:
            entry = self._measure(trial, timed, device, family, guess, lanes)
        if entry is None:
            return self._corrected(guess, device, family, trial.engine)
        found = Cost(**{name: entry[name] for name in TIMES}, memory=guess.memory, calibrated=True)
        scaled = found.scaled(lanes / timed)
        return replace(scaled, start=max(found.start, guess.start))

    def key(self, trial: Trial, lanes: int, device: str) -> str:
        """Hash of everything that a time depends on."""
        train, measure = trial.train, trial.measure
        parts = {
            "machine": machine(device),
            "model": trial.model.model_dump(),
            "source": trial.source,
            "data": trial.data.model_dump(),
            "train": [train.batch, train.optimizer, train.loss_dtype, train.subset, train.momentum > 0],
            "measure": measure.model_dump(include={"probe", "confirm", "layers", "views", "velocity", "dynamics"}),
            "spectra": measure.spectra != "none",
            "coarse": measure.coarse is not None,
            "evaluate": trial.evaluate.size,
            "engine": [trial.engine, trial.width, lanes],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]

    # -- measuring -------------------------------------------------------------------------------------------------

    def _measure(
        self, trial: Trial, timed: int, device: str, family: str, guess: Cost, lanes: int
    ) -> dict[str, Any] | None:
        assert self.timer is not None
        began = time.monotonic()
        threads = torch.get_num_threads()
        try:
            times = time_parts(self.timer, trial, timed)
        finally:
            torch.set_num_threads(threads)
            self.budget -= time.monotonic() - began
        share = guess.scaled(timed / lanes)
        entry = {
            **times,
            "guess": {name: getattr(share, name) for name in TIMES},
            "machine": machine(device),
            "family": family,
            "engine": trial.engine,
            "label": f"{trial.cell} batch {trial.train.batch} lanes {timed}",
        }
        self.entries[self.key(trial, timed, device)] = entry
        self._write()
        return entry

    def _corrected(self, guess: Cost, device: str, family: str, engine: str) -> Cost:
        """The guess times what guesses of the same family were wrong by on this machine, if any was measured."""
        here = [e for e in self.entries.values() if e["machine"] == machine(device)]
        alike = [e for e in here if e["family"] == family and e["engine"] == engine]
        used = alike or [e for e in here if e["engine"] == engine] or here
        factors = {}
        for name in ("step", "measure", "evaluate", "coarse"):
            ratios = [e[name] / e["guess"][name] for e in used if e["guess"][name] > 0 and e[name] > 0]
            factors[name] = statistics.median(ratios) if ratios else 1.0
        return replace(guess, **{name: getattr(guess, name) * factor for name, factor in factors.items()})

    # -- the file --------------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            value = json.loads(self.path.read_text())
            if value["format"] != FORMAT:
                return {}
            entries: dict[str, dict[str, Any]] = value["entries"]
            for entry in entries.values():
                assert all(
                    isinstance(entry[n], float | int) and isinstance(entry["guess"][n], float | int) for n in TIMES
                )
                assert all(isinstance(entry[n], str) for n in ("machine", "family", "engine"))
            return entries
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            log.warning("%s cannot be used (%s: %s): times are measured again", self.path, type(error).__name__, error)
            return {}

    def _write(self) -> None:
        """Whole or not at all; another process's entries of meanwhile are kept. A plan does not fail for its cache."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.entries = {**self._read(), **self.entries}
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".calibration-")
            with os.fdopen(handle, "w") as file:
                json.dump({"format": FORMAT, "entries": self.entries}, file, indent=1)
            os.replace(name, self.path)
        except OSError as error:
            log.warning("%s cannot be written (%s): times will be measured again", self.path, error)


def time_parts(timer: Timer, trial: Trial, lanes: int) -> dict[str, float]:
    """Seconds of a step, a measurement, an evaluation, a coarse measurement, and of the start, by differences.

    Runs differ in one thing at a time, so that what they share cancels: more steps, every step measured, and so on.
    """

    def seconds(steps: int, **changes: Any) -> float:
        return timer(quiet(trial, steps, **changes), lanes, steps)

    seconds(2)  # warms kernels and allocator
    short = seconds(2)
    step = max((seconds(6) - short) / 4, 1e-6)
    if 4 * step < TARGET_SECONDS / 2:  # too short for the clock, and cheap to repeat
        short = min(short, seconds(2))
        many = 2 + min(400, round(TARGET_SECONDS / step))
        step = max((seconds(many) - short) / (many - 2), step / 10)

    def each(most: int, **changes: Any) -> float:
        """One more of what `changes` asks for at every step, beside those at the first and the last."""
        first = max(seconds(2, **changes) - short, 1e-6)
        n = min(most, max(2, round(TARGET_SECONDS / first)))
        if n == 2:
            return first
        return max((seconds(n, **changes) - short - (n - 2) * step) / (n - 1), first / 10)

    measure = each(40, every=1)
    evaluate = each(40, evaluate=1)
    # Steps 0, 1 and 2 of the run.
    coarse = max(seconds(2, coarse=1) - short, 3e-6) / 3 if trial.measure.coarse else 0.0
    start = max(short - 2 * step - 2 * measure - 2 * evaluate, 0.0)
    return {"step": step, "measure": measure, "evaluate": evaluate, "coarse": coarse, "start": start}


def quiet(
    trial: Trial, steps: int, every: int | None = None, evaluate: int | None = None, coarse: int | None = None
) -> Trial:
    """A short version of a trial that measures and evaluates at its first and last step only, unless told otherwise."""
    schedule = trial.train.schedule.model_copy(update={"warmup": 0})
    train = trial.train.model_copy(update={"steps": steps, "schedule": schedule})
    change = {"every": every or steps, "dense_until": 0, "log": 0, "coarse": coarse}
    return trial.model_copy(
        update={
            "train": train,
            "measure": trial.measure.model_copy(update=change),
            "evaluate": Evaluate(every=evaluate, size=trial.evaluate.size),
            "checkpoint": Checkpoint(),
        }
    )


@functools.cache
def machine(device: str) -> str:
    """What the times of a machine depend on: processor, cores, GPU, torch, its instruction set, what solves spectra."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux: the architecture will do
    parts = [name, f"{os.cpu_count()} cores", f"torch {torch.__version__}", torch.backends.cpu.get_cpu_capability()]
    if device == "cuda" and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0))
    return ", ".join([*parts, platform.node()]) + native.mark()


def pack_timer(
    run: Callable[[list[Trial]], Any],
    configure: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.process_time,
) -> Timer:
    """A `Timer` from what trains a list of trials and throws the rows away, and what sets the numerics up.

    The clock counts this process's own work, so that what else runs meanwhile is not taken for the model's cost; give
    `time.perf_counter` for a GPU. `run` makes the pack itself; its data should be loaded already.
    """

    def seconds(trial: Trial, lanes: int, n: int) -> float:
        assert trial.train.steps == n, f"{trial.train.steps=} {n=}"
        seeds = [Seeds(init=lane, order=lane, dropout=lane, data=lane) for lane in range(lanes)]
        trials = [trial.model_copy(update={"seed": seed}) for seed in seeds]
        configure()
        began = clock()
        run(trials)
        return clock() - began

    return seconds
