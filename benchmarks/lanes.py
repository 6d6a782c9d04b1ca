"""Seed-steps a second of our lanes against the same module trained by plain eager PyTorch, one model at a time.

784 -> 10, batch 64, Adam with 1e-3, one thread; fetching the batch counts on both sides. On a GPU (`--device cuda`)
stacked, against PyTorch's own numerics (TF32 convolutions, any algorithm) and against ours (float32, deterministic).
The shares are of what the machine was just measured to do at most.
"""

import argparse
from typing import Any

import torch

from benchmarks.common import Bar, Clock, Side, finish, interleave, parser, rate, ratio, report, start
from benchmarks.limits import Limit, limit, need
from benchmarks.sides import FOUNDING, Ours, Plain, PlainDefaults, best_engine, make, mnist_shaped, trial

LANES = {"stack": 16, "loop": 4}
"""On the CPU: of the lane counts that were tried, the quickest for most architectures of an engine."""
GPU_LANES = {"mlp_narrow": 256, "cnn_deep": 32, "transformer_shallow": 32}
FLOOR = 0.95
BARS: dict[str, dict[tuple[str, int | None], float]] = {
    "cpu": {("mlp_narrow", 16): 3.3, ("cnn_deep", None): 1.3},
    "cuda": {("mlp_narrow", 256): 50.0, ("cnn_deep", 32): 5.0, ("transformer_shallow", 32): 5.0},
}
QUICK = ("mlp_narrow", "cnn_deep", "transformer_narrow")


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where a bar was missed."""
    p = parser(__doc__, rounds=9, seconds=0.5)
    p.add_argument("--models", nargs="+", choices=FOUNDING, help="by default all 15; on a GPU the three with a bar")
    p.add_argument("--lanes", nargs="+", type=int, help="by default 16 (stack) or 4 (loop); on a GPU 256 or 32")
    p.add_argument("--engine", choices=["loop", "stack"], help="by default what a plan picks")
    p.add_argument("--samples", type=int, default=60_000, help="of random data in memory")
    options = p.parse_args(arguments)
    device = torch.device(options.device)
    if options.quick:
        options.rounds, options.seconds = min(options.rounds, 5), min(options.seconds, 0.3)
    models = options.models or (GPU_LANES if device.type == "cuda" else QUICK if options.quick else FOUNDING)
    load = start(device)
    most = limit(device)
    rows, bars = [], []
    for model in models:
        for lanes in options.lanes or [None]:
            row, found = compare(model, lanes, options, device, most)
            rows.append(row)
            bars.extend(found)
    notes = [f"limit measured: {most.flops / 1e9:.0f} GFLOP/s float32, {most.bytes / 1e9:.1f} GB/s copied"]
    return finish("lanes", options, rows, bars, load, notes)


def compare(
    model: str, lanes: int | None, options: argparse.Namespace, device: torch.device, most: Limit
) -> tuple[dict[str, Any], list[Bar]]:
    """One architecture at one lane count."""
    gpu = device.type == "cuda"
    # A GPU waits on its host: processor time says nothing there.
    clock: Clock = "wall" if gpu else "cpu"
    engine = options.engine or ("stack" if gpu else best_engine(model))
    lanes = lanes or (GPU_LANES.get(model, 32) if gpu else LANES[engine])
    data = mnist_shaped(options.samples)
    sides: dict[str, Side] = {"ours": Ours(model, engine, lanes, data, device)}
    sides["plain"] = (PlainDefaults if gpu else Plain)(model, data, device)
    if gpu:
        sides["plain, our numerics"] = Plain(model, data, device)
    rounds = interleave(sides, options.rounds, options.seconds)
    faster = ratio(rounds, "ours", "plain", clock)
    ours = rate(rounds, "ours", clock)
    work = need(make(trial(model, "loop", 0)), device)
    row = {
        "model": model,
        "engine": engine,
        "lanes": lanes,
        "ours/s": ours,
        "plain/s": rate(rounds, "plain", clock),
        "ratio": faster,
        "ratio by wall": ratio(rounds, "ours", "plain", "wall"),
        "% of FLOP/s": 100 * ours * work.flops / most.flops,
        "% of bytes/s": 100 * ours * work.bytes / most.bytes,
    }
    if gpu:
        row["ratio to plain with our numerics"] = ratio(rounds, "ours", "plain, our numerics", clock)
    report(f"{model} {engine} x{lanes}: {faster}")
    limits = BARS[device.type]
    bar = limits.get((model, lanes), limits.get((model, None)))
    bars = [] if bar is None else [Bar(f"{model} x{lanes} against plain", faster.median, bar)]
    return row, [*bars, Bar(f"{model} x{lanes} no slower than plain", faster.median, FLOOR)]


if __name__ == "__main__":
    raise SystemExit(main())
