"""Training plus measuring, like for like with ndtracker (PyPI): same module, its four measures, every 5 steps.

Both measure the training batch, uncentred, as ndtracker lays it out: units as they are, a convolution's output as one
row an image (`--view positions` takes ours for it instead), tokens as rows. ndtracker hooks a plain eager loop with
default Adam and batches by index in memory; ours is an engine with the lanes below.
"""

import argparse
import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import Bar, Side, finish, interleave, parser, rate, ratio, report, start
from benchmarks.sides import Ours, Plain, best_engine, mnist_shaped
from ndt_ray import native
from ndt_ray.data import Dataset
from ndt_ray.lanes.stack import StackEngine
from ndt_ray.layer_views import view_of
from ndt_ray.measurement import measures
from ndt_ray.measurement.capture import Capture
from ndt_ray.measurement.spectra import Layer, LinearInput, Spectrum, measure_layers

EVERY = 5
LANES = {"mlp_narrow": 16, "cnn_deep": 4, "transformer_shallow": 4}
FASTER = {"mlp_narrow": 3.8, "cnn_deep": 1.7, "transformer_shallow": 1.25}
OVERHEAD = {"mlp_narrow": 0.10, "cnn_deep": 0.10, "transformer_shallow": 0.10}
OVERHEAD_PLAIN = {**OVERHEAD, "mlp_narrow": 0.20}
"""Without the compiled kernels."""
ACCURACY = 2e-6
MEASURES = ("stable_rank", "participation_ratio_sv", "energy_90", "nuclear_norm_ratio")
THEIRS = ("stable_rank", "participation_ratio", "cumulative_90", "nuclear_norm_ratio")
"""The same four as ndtracker calls them."""

Values = dict[str, dict[str, np.ndarray]]
"""Layer -> measure -> a number a lane."""


class Measuring(Ours):
    """A pack of lanes that measures its training batch at every fifth step."""

    def __init__(self, model: str, lanes: int, data: Dataset, view: str, mark: str | None = None) -> None:
        super().__init__(model, best_engine(model), lanes, data, torch.device("cpu"))
        self.lanes, self.pack, self.mark = lanes * EVERY, lanes, mark
        # Modules that run: one for all lanes, or one a lane.
        self.running: Sequence[nn.Module] = self.engine.models
        if isinstance(self.engine, StackEngine):
            self.running = [self.engine.stacked]
        tracked: Mapping[str, str] = self.engine.models[0].tracked  # type: ignore[assignment]
        views = {"positions": view}
        self.layers = [Layer(path, i, kind, view_of(kind, views)) for i, (path, kind) in enumerate(tracked.items())]
        self.expanding = [] if isinstance(self.engine, StackEngine) else _expanding(self.engine.models[0], tracked)
        self.captures = [Capture(m, dict(tracked), inputs=self.expanding) for m in self.running]
        self.history: list[Values] = []
        self.keep: dict[str, list[Tensor]] | None = None

    def run(self, steps: int) -> None:
        with native.as_recorded(self.mark):
            for _ in range(steps):
                self.measured_step()
                for _ in range(EVERY - 1):
                    self.step()

    def measured_step(self) -> None:
        inputs, labels = self.batches.get(self.update % self.batches.per_epoch)
        with ExitStack() as stack:
            for capture in self.captures:
                stack.enter_context(capture)
            self.losses = self.engine.backward(inputs, labels, self.update)
            taken = [capture.take() for capture in self.captures]
        # Before the update: an expanding Linear is measured through the weights that made its output.
        self.history.append(self._values(taken))
        self.engine.optimizer.step(self.update, 1.0)
        self.update += 1

    def _values(self, taken: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> Values:
        activations = {layer.path: _lanes([outputs[layer.path] for outputs, _ in taken]) for layer in self.layers}
        if self.keep is not None:
            self.keep = {path: [lane.clone() for lane in lanes] for path, lanes in activations.items()}
        linear = {}
        for path in self.expanding:
            leaves = [m.get_submodule(path) for m in self.engine.models]
            inputs = [i[path] for _, i in taken]
            linear[path] = LinearInput(
                inputs, [_detached(m.weight) for m in leaves], [_detached(m.bias) for m in leaves]
            )
        spectra = measure_layers(activations, self.layers, centred=False, extras=False, linear=linear)
        return four_measures(spectra)


def _detached(parameter: Any) -> Tensor:
    assert isinstance(parameter, Tensor)
    return parameter.detach()


def _lanes(outputs: list[Tensor]) -> Any:
    return outputs[0] if len(outputs) == 1 else outputs


def _expanding(model: nn.Module, tracked: Mapping[str, str]) -> list[str]:
    linears = {path: model.get_submodule(path) for path in tracked}
    return [p for p, m in linears.items() if isinstance(m, nn.Linear) and m.out_features > m.in_features + 1]


def four_measures(spectra: Sequence[Spectrum]) -> Values:
    """The measures of all layers and lanes in one call: zeros behind a shorter spectrum change none of them."""
    found = [s.eigenvalues_uncentred for s in spectra]
    eigenvalues = np.zeros((len(found), len(found[0]), max(e.shape[1] for e in found)))
    for row, e in zip(eigenvalues, found, strict=True):
        row[:, : e.shape[1]] = e
    values = measures.all_measures(eigenvalues, MEASURES)
    return {s.layer.path: {name: v[i] for name, v in values.items()} for i, s in enumerate(spectra)}


class Training(Ours):
    """The same pack without measuring."""

    def __init__(self, model: str, lanes: int, data: Dataset) -> None:
        super().__init__(model, best_engine(model), lanes, data, torch.device("cpu"))
        self.lanes = lanes * EVERY

    def run(self, steps: int) -> None:
        super().run(steps * EVERY)


class Tracked(Plain):
    """The plain loop with ndtracker's `log` at its end, as in its README."""

    lanes = EVERY

    def __init__(self, model: str, data: Dataset, tracker: Any) -> None:
        super().__init__(model, data, torch.device("cpu"))
        paths = list(self.model.tracked)  # type: ignore[arg-type]
        layers = [self.model.get_submodule(path) for path in paths]
        self.tracker = tracker(self.model, layers=layers, layer_names=paths, sampling_frequency=EVERY)

    def run(self, steps: int) -> None:
        for _ in range(steps * EVERY):
            number = self.update
            self.step()
            self.tracker.log(number, self.loss)

    def measured(self) -> int:
        """Measurements that were really made: `log` catches its own errors."""
        return min(len(rows) for rows in self.tracker.metrics_history.values())


class Untracked(Plain):
    """The plain loop alone."""

    lanes = EVERY

    def run(self, steps: int) -> None:
        super().run(steps * EVERY)


def reference(activations: Tensor, kind: str) -> dict[str, float]:
    """ndtracker's four measures from a float64 SVD of its matrix."""
    rows = activations.reshape(-1, activations.shape[-1]) if kind == "tokens" else activations.flatten(1)
    s = torch.linalg.svdvals(rows.double())
    energy = s.square().cumsum(0)
    return {
        "stable_rank": float(energy[-1] / s[0] ** 2),
        "participation_ratio_sv": float(s.sum() ** 2 / energy[-1]),
        "energy_90": int((energy < 0.9 * energy[-1]).sum()) + 1,
        "nuclear_norm_ratio": float(s.sum() / s[0]),
    }


def agreement(side: Measuring, compare: Any) -> dict[str, float]:
    """Worst relative error against a float64 SVD of the activations of one step, and wrong energy-90s: ours, theirs."""
    side.keep = {}
    side.measured_step()
    kept, ours = side.keep, side.history[-1]
    side.keep = None
    found = {"ours": 0.0, "ours wrong e90": 0, "theirs": 0.0, "theirs wrong e90": 0, "matrices": 0}
    for layer in side.layers:
        for lane, activations in enumerate(kept[layer.path]):
            want = reference(activations, layer.kind)
            shape = (-1, activations.shape[-1]) if layer.kind == "tokens" else (len(activations), -1)
            them = dict(zip(THEIRS, compare(activations.reshape(shape)), strict=True))
            theirs = dict(zip(MEASURES, them.values(), strict=True))
            for who, got in (("ours", {m: v[lane] for m, v in ours[layer.path].items()}), ("theirs", theirs)):
                errors = {m: abs(got[m] - want[m]) / want[m] for m in MEASURES}
                found[f"{who} wrong e90"] += int(errors.pop("energy_90") != 0)
                found[who] = float(max(found[who], *errors.values()))
            found["matrices"] += 1
    return found


def compare(
    model: str, options: argparse.Namespace, tracker: Any, their_measures: Any
) -> tuple[dict[str, Any], list[Bar]]:
    """One architecture: speed, cost of measuring, agreement with an SVD."""
    data, lanes = mnist_shaped(options.samples), LANES[model]
    measuring = Measuring(model, lanes, data, options.view)
    tracked = Tracked(model, data, tracker)
    sides: dict[str, Side] = {
        "ours": measuring,
        "ours without kernels": Measuring(model, lanes, data, options.view, mark="no kernels"),
        "ours untracked": Training(model, lanes, data),
        "ndtracker": tracked,
        "plain": Untracked(model, data, torch.device("cpu")),
    }
    # At the initialisation and after the rounds.
    errors = [agreement(measuring, their_measures)] if options.view == "flat" else []
    rounds = interleave(sides, options.rounds, options.seconds)
    if tracked.measured() * EVERY != tracked.update:
        raise RuntimeError(f"ndtracker measured {tracked.measured()} of {tracked.update // EVERY} times")
    faster, cost = ratio(rounds, "ours", "ndtracker", "cpu"), ratio(rounds, "ours untracked", "ours", "cpu")
    plain = ratio(rounds, "ours untracked", "ours without kernels", "cpu")
    row: dict[str, Any] = {
        "model": model,
        "lanes": lanes,
        "ours/s": rate(rounds, "ours", "cpu"),
        "ndtracker/s": rate(rounds, "ndtracker", "cpu"),
        "ratio": faster,
        "our cost": cost,
        "without kernels": plain,
        "ndtracker's cost": ratio(rounds, "plain", "ndtracker", "cpu"),
    }
    report(f"{model}: {faster}, our cost {cost}, without kernels {plain}")
    bars = [
        Bar(f"{model}: training and measuring against ndtracker", faster.median, FASTER[model]),
        Bar(f"{model}: measuring over own training", cost.median - 1, OVERHEAD[model], at_most=True),
        Bar(f"{model}: the same without kernels", plain.median - 1, OVERHEAD_PLAIN[model], at_most=True),
    ]
    if options.view == "flat":
        errors.append(agreement(measuring, their_measures))
        worst = {who: max(e[who] for e in errors) for who in ("ours", "theirs")}
        total = {what: sum(e[what] for e in errors) for what in ("matrices", "ours wrong e90", "theirs wrong e90")}
        row |= {"error": worst["ours"], "ndtracker's error": worst["theirs"], **total}
        bars += [
            Bar(f"{model}: error against a float64 SVD", worst["ours"], ACCURACY, at_most=True),
            Bar(f"{model}: energy-90 that differ", total["ours wrong e90"], 0, at_most=True),
        ]
    return row, bars


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where a bar was missed."""
    p = parser(__doc__, rounds=15, seconds=0.5)
    p.add_argument("--models", nargs="+", choices=LANES, default=list(LANES))
    p.add_argument("--view", choices=["flat", "positions"], default="flat", help="of our convolutions")
    p.add_argument("--samples", type=int, default=60_000, help="of random data in memory")
    options = p.parse_args(arguments)
    if options.device != "cpu":
        p.error("ndtracker measures in line on the host's time: this compares processors")
    if options.quick:
        options.rounds, options.seconds = min(options.rounds, 3), min(options.seconds, 0.2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ndt import HighFrequencyTracker, compute_all_metrics  # type: ignore[import-untyped]
    except ImportError:
        p.error("ndtracker is not installed: pip install -e '.[bench]'")
    load = start(torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    bars: list[Bar] = []
    for model in options.models:
        row, found = compare(model, options, HighFrequencyTracker, compute_all_metrics)
        rows.append(row)
        bars += found
    kernels = f"kernels: {native.status()}"
    notes = [
        kernels,
        f"ndtracker {importlib.metadata.version('ndtracker')}; cost: seconds with measuring over seconds without",
    ]
    return finish("measuring", options, rows, bars, load, notes)


if __name__ == "__main__":
    raise SystemExit(main())
