"""Aggregate seed-steps a second of two worker processes against one, each with one thread and the same job.

The ratio is of idle cores: only rounds count in which other processes took under 3 % of the machine. `per CPU second`,
over all rounds, is the sum of two workers' seed-steps a CPU second over one's: shared caches and memory enter it, a
wait for a core does not.
"""

import argparse
import multiprocessing as mp
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from benchmarks.common import Bar, OtherLoad, Ratio, Timed, finish, parser, report, spread, start

BAR = 1.8
IDLE = 0.03
"""Share of all cores that others may take in a round that counts."""
LANES = {"stack": 16, "loop": 4}
QUICK, FULL = ("mlp_narrow",), ("mlp_narrow", "cnn_deep")


def worker(model: str, lanes: int | None, samples: int, gate: Barrier, pipe: Connection) -> None:
    """Trains for as long as it is told, each time it is told; None ends it."""
    from benchmarks.sides import Ours, best_engine, mnist_shaped
    from ndt_ray.lanes.numerics import configure

    device = torch.device("cpu")
    configure(device)
    engine = best_engine(model)
    side = Ours(model, engine, lanes or LANES[engine], mnist_shaped(samples), device)
    side.run(3)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        seconds, together = order
        if together:
            gate.wait()
        pipe.send(_train(side, seconds))


def _train(side: Any, seconds: float) -> Timed:
    wall, cpu, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        side.step()
        steps += 1
    return Timed(steps * side.lanes, time.process_time() - cpu, time.perf_counter() - wall)


def compare(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """One alone, two together, the other alone, two together, and so on."""
    spawn = mp.get_context("spawn")
    gate = spawn.Barrier(2)
    pipes, processes = [], []
    for _ in range(2):
        near, far = spawn.Pipe()
        process = spawn.Process(target=worker, args=(model, options.lanes, options.samples, gate, far), daemon=True)
        process.start()
        far.close()
        pipes.append(near)
        processes.append(process)
    try:
        for pipe in pipes:
            pipe.recv()
        found = [_round(pipes, r, options.seconds) for r in range(options.rounds)]
        for pipe in pipes:
            pipe.send(None)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    idle = [r for r in found if r.others < IDLE]
    return {
        "model": model,
        "one/s": spread([r.one.rate("wall") for r in idle or found]).median,
        "two/s": spread([r.together for r in idle or found]).median,
        "ratio": spread([r.together / r.one.rate("wall") for r in found]),
        "on idle cores": spread([r.together / r.one.rate("wall") for r in idle]) if idle else "no idle round",
        "per CPU second": spread([sum(t.rate("cpu") for t in r.two) / r.one.rate("cpu") for r in found]),
        "taken by others": spread([r.others for r in found]),
    }


@dataclass(frozen=True)
class Round:
    """One worker alone and two together, and the share of the cores that others took meanwhile."""

    one: Timed
    two: list[Timed]
    others: float

    @property
    def together(self) -> float:
        return sum(t.rate("wall") for t in self.two)


def _round(pipes: Sequence[Connection], number: int, seconds: float) -> Round:
    other = OtherLoad()
    one: Timed | None = None
    two: list[Timed] = []
    for turn in (number, number + 1):
        if turn % 2:
            for pipe in pipes:
                pipe.send((seconds, True))
            two = [pipe.recv() for pipe in pipes]
        else:
            pipes[number // 2 % 2].send((seconds, False))
            one = pipes[number // 2 % 2].recv()
    assert one is not None
    return Round(one, two, other.share(one.cpu + sum(t.cpu for t in two)))


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where a bar was missed."""
    p = parser(__doc__, rounds=20, seconds=1.0)
    p.add_argument("--models", nargs="+", help=f"by default {' '.join(FULL)}")
    p.add_argument("--lanes", type=int, help="of each worker, by default 16 (stack) or 4 (loop)")
    p.add_argument("--samples", type=int, default=60_000, help="of random data in memory, in each worker")
    options = p.parse_args(arguments)
    if options.device != "cpu":
        p.error("workers share a GPU by time slicing: this compares processor cores")
    if options.quick:
        options.rounds, options.seconds = min(options.rounds, 10), min(options.seconds, 1.0)
    load = start(torch.device("cpu"))
    rows, bars = [], []
    for model in options.models or (QUICK if options.quick else FULL):
        row = compare(model, options)
        report(f"{model}: {row['ratio']}")
        rows.append(row)
        found = row["on idle cores"]
        value = found.median if isinstance(found, Ratio) else None
        bars.append(Bar(f"{model}: two workers on idle cores against one", value, BAR))
    return finish("workers", options, rows, bars, load)


if __name__ == "__main__":
    raise SystemExit(main())
