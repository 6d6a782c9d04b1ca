"""What `HighFrequencyTracker` costs a plain PyTorch loop at every fifth step of batch 64, beside ndtracker's.

Shares of the plain loop's processor time, hooks included. Both measure the training batch; `uncentred` is what
ndtracker measures (its SVD against our Gram matrix; convolutions by position), `everything` what the tables hold.
"""

import argparse
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.common import Side, finish, interleave, parser, rate, ratio, start
from benchmarks.sides import Plain, mnist_shaped
from ndt_ray.data import Dataset
from ndt_ray.tracking.tracker import HighFrequencyTracker

EVERY = 5
MODELS = ("mlp_narrow", "cnn_deep", "transformer_shallow")
OPTIONS: dict[str, dict[str, Any]] = {
    "everything": {},
    "uncentred": {"centred": False},
    "probe of 64": {"probe": torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(1))},
}


class Tracked(Plain):
    """The plain loop with a tracker's `log` at its end; a step of it is five of training."""

    lanes = EVERY

    def __init__(self, model: str, data: Dataset, tracker: Any, options: Mapping[str, Any]) -> None:
        super().__init__(model, data, torch.device("cpu"))
        paths = list(self.model.tracked)  # type: ignore[arg-type]
        layers = [self.model.get_submodule(path) for path in paths]
        self.tracker = tracker(self.model, layers=layers, layer_names=paths, sampling_frequency=EVERY, **options)

    def run(self, steps: int) -> None:
        for _ in range(steps * EVERY):
            number = self.update
            self.step()
            self.tracker.log(number, self.loss)


def compare(model: str, options: argparse.Namespace, theirs: Any) -> dict[str, Any]:
    """One row: the plain loop's rate, and each tracker's share of its time."""
    data = mnist_shaped(8_192)
    sides: dict[str, Side] = {"plain": Plain(model, data, torch.device("cpu"))}
    sides |= {name: Tracked(model, data, HighFrequencyTracker, given) for name, given in OPTIONS.items()}
    if theirs is not None:
        sides["ndtracker"] = Tracked(model, data, theirs, {})
    rounds = interleave(sides, options.rounds, options.seconds)
    row: dict[str, Any] = {"model": model, "plain step ms": round(1e3 / rate(rounds, "plain", "cpu"), 2)}
    for name in list(sides)[1:]:
        cost = ratio(rounds, "plain", name, "cpu")
        row[name] = f"{cost.median - 1:+.0%} ({cost.low - 1:+.0%} to {cost.high - 1:+.0%}, n={cost.n})"
    return row


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: there is no bar to miss."""
    p = parser(__doc__, rounds=9, seconds=0.5)
    p.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = p.parse_args(arguments)
    if options.device != "cpu":
        p.error("ndtracker measures in line on the host's time: this compares processors")
    if options.quick:
        options.rounds, options.seconds = min(options.rounds, 3), min(options.seconds, 0.2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ndt import HighFrequencyTracker as Theirs  # type: ignore[import-untyped]
    except ImportError:
        Theirs = None
    load = start(torch.device("cpu"))
    rows = [compare(model, options, Theirs) for model in options.models]
    return finish("tracker", options, rows, [], load)


if __name__ == "__main__":
    raise SystemExit(main())
