"""What a calibrated test of a series costs: the default detector with each of its nulls, and how it grows.

    python -m benchmarks detection [--series 400] [--n 400] [--quick]

The founding study's 400 series of 400 measurements: a third each of AR(1) noise, of noise around a relaxation, and of
noise with a step, all judged with 500 surrogates (more where p asks for them). Core seconds are of this one process;
two actors halve them. `--quick`: a tenth of the series, and every null on a twentieth.

Beside it what short series can show: steps of 8 SDs in AR(1) noise of 0.5, by the number of measurements.
"""

import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from scipy.signal import lfilter

from benchmarks.common import Bar, finish, parser, report, start
from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.detection.profile import judge
from ndt_ray.analysis.detection.surrogates import NULLS

CORES = 2
LENGTHS = (31, 61, 121, 241)
MINUTES = 2.0
"""For 400 series of 400 measurements with the AR-sieve null, on two cores."""


def main(arguments: list[str] | None = None) -> int:
    p = parser(__doc__, rounds=1, seconds=0)
    p.add_argument("--series", type=int, default=400, help="a tenth with --quick")
    p.add_argument("--n", type=int, default=400, help="measurements in a series")
    options = p.parse_args(arguments)
    load = start(torch.device("cpu"))
    count = max(6, options.series // 10) if options.quick else options.series
    values = series(count, options.n)
    judge(values[0], "warm")  # the dictionary of this length is made once
    rows = []
    for null in NULLS:
        some = values if null == NULLS[0] else values[: max(6, count // 10)]
        rows.append({"null": null, "series": len(some), "measurements": options.n, **timed(some, null)})
        report(f"{null}: {rows[-1]['core_seconds_a_series']:.3f} core seconds a series")
    for n in LENGTHS:
        some = steps(max(6, count // 4), n)
        rows.append({"null": f"{NULLS[0]}, 8 SD steps", "series": len(some), "measurements": n})
        rows[-1] |= timed(some, NULLS[0])
        report(f"{n} measurements: {rows[-1]['found']} of {len(some)} steps found at p < 0.01")
    half = timed(values[: max(3, count // 2)], NULLS[0])
    whole = float(rows[0]["core_seconds_a_series"])
    minutes = whole * 400 / CORES / 60
    bars = [
        Bar(
            "minutes for 400 series of 400 on 2 cores, AR-sieve null",
            minutes if options.n == 400 else None,
            MINUTES,
            True,
        ),
        Bar("cost a series of all / of half of them", whole / float(half["core_seconds_a_series"]), 1.25, True),
    ]
    return finish("detection", options, rows, bars, load, [f"series with p < 0.01: {rows[0]['found']} of {count}"])


def timed(values: Floats, null: str) -> dict[str, float | int]:
    """Core seconds a series: mean, median and largest; how many have p < 0.01, and surrogates drawn a series."""
    took, found, drawn = [], 0, 0
    for i, one in enumerate(values):
        began = time.process_time()
        judged = judge(one, f"benchmark {i}", null=null)
        took.append(time.process_time() - began)
        found += judged.p < 0.01
        drawn += judged.n_surrogates
    return {
        "core_seconds_a_series": statistics.fmean(took),
        "median": statistics.median(took),
        "largest": max(took),
        "surrogates_a_series": round(drawn / len(values)),
        "found": int(found),
    }


def steps(count: int, n: int) -> Floats:
    """`[count, n]`: steps of 8 SDs in the middle three fifths of AR(1) noise of coefficient 0.5."""
    rng, t = np.random.default_rng(1), np.arange(n)
    noise = lfilter([1.0], [1.0, -0.5], rng.normal(size=(count, n + 200)) * np.sqrt(0.75), axis=-1)[:, 200:]
    return np.asarray(noise + 8.0 * (t > rng.uniform(0.2, 0.8, (count, 1)) * n))


def series(count: int, n: int) -> Floats:
    """`[count, n]`: AR(1) of coefficients 0 to 0.9, alone, around a relaxation, and with a step of 8 SDs."""
    rng, t = np.random.default_rng(0), np.arange(n)
    out: list[Floats] = []
    for i in range(count):
        phi = (0.0, 0.3, 0.6, 0.9)[i % 4]
        noise = lfilter([1.0], [1.0, -phi], rng.normal(size=n + 200) * np.sqrt(1 - phi * phi))[200:]
        added: Sequence[Floats] = (
            np.zeros(n),
            30 * np.exp(-t / (0.03 * n)),
            8.0 * (t > rng.uniform(0.2, 0.8) * n),
        )
        out.append(noise + added[i % 3])
    return np.stack(out)
