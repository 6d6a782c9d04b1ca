"""The thresholds of `ndt_ray.online` from simulation: `python tools/calibrate_online.py [--series N]` prints them.

For each time scale, each null family and runs of 60 and of 400 measurements: the largest CUSUM of each of N series.
The threshold for a rate of false alarms per judged value is the quantile that so many of the series exceed, of the
family in which it is largest; so the rate is at most the nominal one on each family. Takes a minute a core for 50,000.
"""

import argparse
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ndt_ray.online import SCALES, Cusums, Scale

Floats = NDArray[np.float64]

RATES = (1e-2, 1e-3, 1e-4, 1e-5)
"""Rarer ones are resolved in long runs only, and the worst families are worst in short ones."""
LENGTHS = (60, 400)
LEAST = 10
"""Exceedances that a quantile must rest on; rates with fewer are left to extrapolation."""
FAMILIES = ("iid", "ar", "drift", "relaxation_5", "relaxation_20", "relaxation_50")


def null(family: str, series: int, length: int, generator: np.random.Generator) -> Iterator[Floats]:
    """Measurement after measurement `[series]` of noise of SD 1: independent, AR(1) with phi 0.5, with a drift of 0.1 a
    measurement, or on an exponential relaxation from 50 with so many measurements' time constant."""
    noise = generator.standard_normal(series)
    for t in range(length):
        fresh = generator.standard_normal(series)
        noise = 0.5 * noise + math.sqrt(0.75) * fresh if family == "ar" else fresh
        trend = 0.1 * t if family == "drift" else 0.0
        if family.startswith("relaxation"):
            trend = 50 * math.exp(-t / float(family.partition("_")[2]))
        yield noise + trend


def peaks(scale: Scale, family: str, series: int, length: int, seed: int = 0) -> Floats:
    """The largest CUSUM of each series at a time scale."""
    generator = np.random.default_rng([seed, length, *family.encode()])
    cusums, highest = Cusums(series, scale), np.zeros(series)
    for t, values in enumerate(null(family, series, length, generator)):
        if cusums.update(t, values).any():
            np.maximum(highest, cusums.heights(), out=highest)
    return highest


def heights(scale: Scale, family: str, length: int, series: int, chunk: int = 5_000) -> dict[float, float]:
    """Thresholds by rate on one family; rates that so few series cannot resolve are missing."""
    parts = [peaks(scale, family, chunk, length, seed) for seed in range(max(1, series // chunk))]
    found = np.sort(np.concatenate(parts))[::-1]
    each = scale.judged(length)
    exceed = {rate: -len(found) * math.expm1(-rate * each) for rate in RATES}
    return {rate: float(found[int(n)]) for rate, n in exceed.items() if n >= LEAST}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--series", type=int, default=50_000, help="simulated in each case")
    options = p.parse_args()
    for scale in SCALES:
        worst = dict.fromkeys(RATES, 0.0)
        for length in (n for n in LENGTHS if scale.judged(n)):
            for family in FAMILIES:
                found = heights(scale, family, length, options.series)
                print(f"# {scale.name} {family} {length}", {r: round(h, 2) for r, h in found.items()}, flush=True)
                worst = {rate: max(worst[rate], found.get(rate, 0.0)) for rate in RATES}
        table = tuple((rate, round(h, 2)) for rate, h in worst.items() if h)
        print(f'    "{scale.name}": {table},')


if __name__ == "__main__":
    main()
