"""What watching for events costs of training: packs that watch and keep recent states against the same that do not.

Every 10 steps both measure all layers; the one that watches also asks its detector and, every fourth time, copies the
lanes' weights and moments into its ring. No alarm is let through: a trigger costs three checkpoints, whoever asks for
them. What the ring adds to a commit (its states are recovery state too) is timed apart and spread over the 30 s between
commits. 784 -> 10, batch 64, Adam with 1e-3, one thread, in processor time.

Two figures: runs with and without, interleaved; and, since on a busy machine these differ by more than what is sought,
the time inside the trigger's own calls over that inside the updates of the same run. The bar is of the second: of
training alone, measuring not counted.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Bar, Ratio, Rounds, Timed, finish, parser, rate, report, spread, start
from benchmarks.everything import EVERY, LANES, NEVER, Clock, Runs
from ndt_ray import train
from ndt_ray.lanes import Engine
from ndt_ray.lanes.batches import Batches
from ndt_ray.plan.estimate import ring_bytes
from ndt_ray.spec import Trial
from ndt_ray.store.reader import open_store
from ndt_ray.store.writer import COMMIT_SECONDS, PackWriter
from ndt_ray.triggers import Triggers

LIMIT = 0.03
NO_ALARM = 1e-100
"""False alarms per run: thresholds that nothing reaches."""
PLANNED = 100_000
"""Steps of the run that is begun: so long that states are taken from its start."""
KEPT = 2
"""States held in the runs that are timed: the ring has been filled once when their clock starts."""
WARM = 50
"""Steps before the clock starts; a state is taken at step 0 and at every 40th."""


class Watched(Runs):
    """Packs of one cell: `unmeasured`, `measured`, or `watched` too."""

    def __init__(self, model: str, lanes: int, probe: int) -> None:
        super().__init__(model, "mnist", lanes, probe)
        self.shares: list[float] = []
        """Of each watched run: seconds of watching over those of its updates."""

    def pack_of(self, side: str, **watching: Any) -> train.Pack:
        """A fresh one; `watching`: fields of its on_event."""
        on_event = {"false_alarms_per_run": NO_ALARM, **watching}
        spec = {
            "model": self.model,
            "data": "digits",
            "train": {"steps": PLANNED, "batch": 64},
            "measure": {"every": NEVER if side == "unmeasured" else EVERY, "probe": self.probe},
            "evaluate": {"every": NEVER, "size": 10},
            "checkpoint": {"on_event": on_event if side == "watched" else False},
            "engine": self.engine,
        }
        trials = [Trial.model_validate({**spec, "seed": seed}) for seed in range(self.lanes)]
        return train.Pack(trials, self._make, self.data, torch.device("cpu"), [t.cell for t in trials], "")

    def timed(self, side: str, steps: int) -> Timed:
        """One run of `steps` steps once it is warm."""
        with accounted() as spent:
            sink = _Late(steps, spent)
            train.train_pack(self.pack_of(side, keep=KEPT), sink)
        if side == "watched":
            self.shares.append(spent["watching"] / spent["training"])
        return Timed(steps * self.lanes, *sink.took)

    def commit_seconds(self, side: str) -> float:
        """Of writing the recovery state, after the ring was filled."""
        sink = _State()
        train.train_pack(self.pack_of(side), sink)
        return sink.seconds

    def rounds(self, rounds: int, seconds: float) -> Rounds:
        """Sides in turn, each for about `seconds` unmeasured, in whole tens of steps."""
        tens = max(4, round(seconds / self.timed("unmeasured", EVERY).wall))
        sides = ["unmeasured", "measured", "watched"]
        out: Rounds = []
        for r in range(rounds):
            turned = sides[r % 3 :] + sides[: r % 3]
            out.append({side: self.timed(side, tens * EVERY) for side in turned})
        return out


WATCHING = ("on_grid", "see", "judge", "due", "past", "remember")
"""All that a recorder calls of its triggers."""


@contextmanager
def accounted() -> Iterator[dict[str, float]]:
    """Processor seconds spent in updates and in watching while the block runs."""
    spent = {"training": 0.0, "watching": 0.0}
    places: list[tuple[type, str, str]] = [(Triggers, name, "watching") for name in WATCHING]
    places += [(Engine, "step", "training"), (Batches, "get", "training")]
    usual = [(owner, name, getattr(owner, name)) for owner, name, _ in places]

    def timing(call: Callable[..., Any], what: str) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = time.process_time()
            try:
                return call(*arguments)
            finally:
                spent[what] += time.process_time() - began

        return timed

    try:
        for (owner, name, what), (_, _, call) in zip(places, usual, strict=True):
            setattr(owner, name, timing(call, what))
        yield spent
    finally:
        for owner, name, call in usual:
            setattr(owner, name, call)


class _Late(Clock):
    """Starts its clock, and the account, once the run is warm."""

    def __init__(self, steps: int, spent: dict[str, float]) -> None:
        super().__init__(steps)
        self.spent = spent

    def heartbeat(self, step: int, state: Callable[[], Any], progress: Any) -> bool:
        if step == WARM:
            self.began = time.process_time(), time.perf_counter()
            self.spent.update(dict.fromkeys(self.spent, 0.0))
        if step < WARM + self.steps:
            return False
        self.took = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
        return True


class _State(Clock):
    """Writes the recovery state a few times, and ends the run."""

    def __init__(self) -> None:
        super().__init__(WARM)
        self.seconds = 0.0

    def heartbeat(self, step: int, state: Callable[[], Any], progress: Any) -> bool:
        if step < WARM:
            return False
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(Path(folder), create=True)
            with PackWriter(store, "s", "p") as writer:
                took = []
                for i in range(5):
                    began = time.process_time()
                    writer.commit(step + i, state())
                    took.append(time.process_time() - began)
        self.seconds = statistics.median(took)
        return True


def overhead(rounds: Rounds) -> Ratio:
    """Seconds that watching adds, over those of training alone, within each round."""
    return spread([(r["watched"].cpu - r["measured"].cpu) / r["unmeasured"].cpu for r in rounds])


def compare(model: str, lanes: int, options: argparse.Namespace) -> tuple[dict[str, Any], Bar]:
    """One cell."""
    runs = Watched(model, lanes, options.probe)
    rounds = runs.rounds(options.rounds, options.seconds)
    added, own = overhead(rounds), spread(runs.shares)
    commits = {side: runs.commit_seconds(side) for side in ("measured", "watched")}
    committing = (commits["watched"] - commits["measured"]) / COMMIT_SECONDS
    pack = runs.pack_of("watched")
    weights = sum(p.numel() for p in pack.build(pack.trials[0]).parameters())
    row = {
        "model": model,
        "engine": runs.engine,
        "lanes": lanes,
        "ring MB a lane": ring_bytes(pack.trials[0], weights) / 1e6,
        "training/s": rate(rounds, "unmeasured", "cpu"),
        "with - without": Ratio(*(round(v, 3) for v in (added.median, added.low, added.high)), added.n),
        "watching": own.median,
        "commit s": commits["measured"],
        "with ring s": commits["watched"],
        "commits": committing,
    }
    report(f"{model}: watching {own.median:.4f} ({own.low:.4f}-{own.high:.4f}), commits {committing:.4f}, runs {added}")
    return row, Bar(f"{model}: watching and its commits over training", own.median + committing, LIMIT, at_most=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where a bar was missed."""
    p = parser(__doc__, rounds=15, seconds=2.0)
    p.add_argument("--models", nargs="+", choices=LANES, default=list(LANES))
    p.add_argument("--probe", type=int, default=128, help="stimuli")
    options = p.parse_args(arguments)
    if options.device != "cpu":
        p.error("the bars are of processor time")
    if options.quick:
        options.rounds, options.seconds = min(options.rounds, 3), min(options.seconds, 0.5)
    load_average = start(torch.device("cpu"))
    train.HEARTBEAT_SECONDS = 0.0  # so that a run can end at any step
    rows, bars = [], []
    for model in options.models:
        row, bar = compare(model, LANES[model], options)
        rows.append(row)
        bars.append(bar)
    notes = ["seconds over those of training: of whole runs; of the trigger's calls; of commits at one every 30 s"]
    return finish("triggers", options, rows, bars, load_average, notes)


if __name__ == "__main__":
    raise SystemExit(main())
