"""From what was seen of some layers at one step to rows of the tables, those of lost layers included."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ndt_ray.errors import NdtError
from ndt_ray.layer_views import VIEWS, view_of
from ndt_ray.measurement.capture import AUTO
from ndt_ray.measurement.rows import rows
from ndt_ray.measurement.spectra import Layer, LinearInput, Spectrum, measure_layers
from ndt_ray.measurement.velocity import VelocityTracker
from ndt_ray.measurement.views import kind_of
from ndt_ray.tracking.watch import Seen

LOST, FEW = "lost", "few_rows"
NOT_RUN = "did not run"
NEVER_SEEN = "none"
"""View in the rows of a layer that has not run yet, so that it is not known what it puts out."""

Spectra = Literal["full", "none"] | int
Tables = dict[str, list[dict[str, Any]]]
"""Batches of columns by table."""


@dataclass(frozen=True)
class _Measured:
    """One step, not yet made into rows."""

    step: int
    spectra: list[Spectrum]
    velocity: list[dict[str, Any]]
    lost: list[tuple[str, int, str]]
    """Layer, place and view, as known at that step."""
    scalars: dict[str, Any]


class Meter:
    """Measures one model's layers at one step after the other; remembers each layer's place and view.

    Steps wait until `drain` makes rows of them: for many at a time that costs a tenth. `lost` is told at each step
    which layers' rows say `lost`, and why.
    """

    def __init__(
        self,
        trial_id: str,
        layers: Mapping[str, tuple[str, str]],
        *,
        views: Mapping[str, str] | None = None,
        spectra: Spectra = "full",
        centred: bool = True,
        velocity: bool = False,
        labels: Tensor | None = None,
        lost: Callable[[Mapping[str, str]], None] = lambda reasons: None,
    ) -> None:
        for kind in VIEWS:
            view_of(kind, views)
        self.trial_id, self.layers, self._lost = trial_id, dict(layers), lost
        self._views, self._spectra, self._centred = views, spectra, centred
        self._labels = None if labels is None else labels.cpu().numpy()
        self._velocity: dict[str, VelocityTracker] | None = {} if velocity and centred else None
        self.last = -1
        """The last step measured."""
        self._index: dict[str, int] = {}
        self._view: dict[str, str] = {}
        self._waiting: list[_Measured] = []

    def measure(self, step: int, seen: Seen, order: Mapping[str, int], scalars: Mapping[str, Any]) -> None:
        """Measure a step; `order` is that of execution, by path, `scalars` are its columns in that table."""
        self._place(order)
        self.last = step
        found: list[tuple[Layer, Any]] = []
        lost = {path: _why(error) for path, error in seen.missing.items()}
        for path, (name, kind) in self.layers.items():
            if path in seen.outputs:
                try:
                    found.append((self._layer(name, kind, seen.outputs[path]), seen.outputs[path]))
                except Exception as error:  # the row says lost, and the reason is told
                    lost[path] = _why(error)
        with torch.no_grad(), _on_host():
            spectra, failed = self._spectra_of(sorted(found, key=lambda pair: pair[0].index))
            velocity = [] if self._velocity is None else [self._tracker(s).update(step, [0], [s]) for s in spectra]
        reasons = {self.layers[path][0]: why for path, why in lost.items()} | failed
        kept = [replace(s, stimuli=None) for s in spectra]
        lost_now = [self._lost_place(name) for name in reasons]
        self._waiting.append(_Measured(step, kept, [v.columns for v in velocity], lost_now, dict(scalars)))
        if reasons:
            self._lost(reasons)

    def drain(self) -> Tables:
        """Rows of all steps that wait, for `measurements`, `spectra`, `velocity` and `scalars`."""
        waiting, self._waiting = self._waiting, []
        try:
            return self._tables(waiting)
        except Exception:  # one step must not take the others with it
            tables: Tables = {}
            for measured in waiting:
                for table, batches in self._alone(measured).items():
                    tables.setdefault(table, []).extend(batches)
            return tables

    def names(self) -> list[str]:
        """Layers in the order of execution, as far as it is known."""
        listed = [name for name, _ in self.layers.values()]
        return sorted(listed, key=lambda name: self._index.get(name, len(listed)))

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed meter needs to give the same layers the same places and go on with their velocity."""
        known = json.dumps({"index": self._index, "view": self._view, "last": self.last}).encode()
        state = {"layers": np.frombuffer(known, np.uint8)}
        for name, tracker in (self._velocity or {}).items():
            state |= {f"velocity/{name}//{key}": value for key, value in tracker.state().items()}
        return state

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        known = json.loads(np.asarray(state["layers"]).tobytes())
        self._index, self._view, self.last = known["index"], known["view"], known["last"]
        parts: dict[str, dict[str, np.ndarray]] = {}
        for key, value in state.items():
            if key.startswith("velocity/"):
                name, _, rest = key.removeprefix("velocity/").partition("//")
                parts.setdefault(name, {})[rest] = value
        if self._velocity is not None:
            for name, part in parts.items():
                self._tracker(name).load(part)

    # -- one step --------------------------------------------------------------------------------------------------

    def _place(self, order: Mapping[str, int]) -> None:
        """Give layers that ran for the first time the next places, in the order in which they ran."""
        for path in sorted((path for path in self.layers if path in order), key=order.__getitem__):
            self._index.setdefault(self.layers[path][0], len(self._index))

    def _layer(self, name: str, kind: str, output: Tensor | LinearInput) -> Layer:
        if isinstance(output, LinearInput):
            kind = {2: "units", 3: "tokens"}[output.inputs[0].ndim]
        elif kind == AUTO:
            kind = kind_of(output)
        self._view[name] = view_of(kind, self._views)
        return Layer(name, self._index[name], kind, self._view[name])

    def _spectra_of(self, found: Sequence[tuple[Layer, Any]]) -> tuple[list[Spectrum], dict[str, str]]:
        """Spectra of all layers that can be measured, and why the others cannot."""
        try:
            return _measured(found, self._centred), {}
        except Exception:  # one layer must not take the others with it
            spectra, failed = [], {}
            for pair in found:
                try:
                    spectra += _measured([pair], self._centred)
                except Exception as error:
                    failed[pair[0].path] = _why(error)
            return spectra, failed

    def _alone(self, measured: _Measured) -> Tables:
        try:
            return self._tables([measured])
        except Exception as error:
            reasons = {s.layer.path: _why(error) for s in measured.spectra}
            self._lost(reasons)
            lost = [*measured.lost, *map(self._lost_place, reasons)]
            return self._tables([replace(measured, spectra=[], lost=lost)])

    def _tables(self, waiting: Sequence[_Measured]) -> Tables:
        tables: Tables = {"scalars": [self._columns(m.step, m.scalars) for m in waiting]}
        spectra = [s for m in waiting for s in m.spectra]
        if spectra:
            at = np.repeat([m.step for m in waiting], [len(m.spectra) for m in waiting])
            found = rows(spectra, self._spectra)
            few = [s.shape.total < 2 for s in spectra]
            flags = [FEW if f else flag for f, flag in zip(few, found.measurements["flag"], strict=True)]
            tables["measurements"] = [self._columns(at, {**found.measurements, "flag": flags})]
            tables["spectra"] = [self._columns(at, found.spectra)]
        velocity = [self._columns(np.full(1, m.step), columns) for m in waiting for columns in m.velocity]
        if velocity:
            tables["velocity"] = [{key: _joined([columns[key] for columns in velocity]) for key in velocity[0]}]
        lost = [(m.step, *place) for m in waiting for place in m.lost]
        if lost:
            steps, *columns = (list(column) for column in zip(*lost, strict=True))
            known = dict(zip(("layer", "layer_index", "view"), columns, strict=True))
            tables.setdefault("measurements", []).append(self._columns(steps, {**known, "flag": [LOST] * len(lost)}))
        return tables

    def _columns(self, step: Any, columns: Mapping[str, Any]) -> dict[str, Any]:
        return {"trial_id": [self.trial_id] * np.size(step), "step": step, **columns}

    def _tracker(self, spectrum: Spectrum | str) -> VelocityTracker:
        # One for each layer: `previous_step` is then the layer's own, also after a step at which it was lost.
        assert self._velocity is not None
        name = spectrum if isinstance(spectrum, str) else spectrum.layer.path
        if name not in self._velocity:
            self._velocity[name] = VelocityTracker(self._labels)
        return self._velocity[name]

    def _lost_place(self, name: str) -> tuple[str, int, str]:
        # A layer that has never run has no place yet: a negative one, of its own, for rows need different keys.
        unplaced = {name: -1 - i for i, (name, _) in enumerate(self.layers.values())}
        return name, self._index.get(name, unplaced[name]), self._view.get(name, NEVER_SEEN)


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return list(chain.from_iterable(parts))


def _measured(found: Sequence[tuple[Layer, Any]], centred: bool) -> list[Spectrum]:
    if not found:
        return []
    linear = {layer.path: output for layer, output in found if isinstance(output, LinearInput)}
    activations = {layer.path: output[None] for layer, output in found if isinstance(output, Tensor)}
    return measure_layers(activations, [layer for layer, _ in found], centred=centred, extras=centred, linear=linear)


def _why(error: Exception | None) -> str:
    if error is None:
        return NOT_RUN
    text = str(error).partition("\n")[0]
    return text if isinstance(error, NdtError) else f"{type(error).__name__}: {text}"


def _on_host() -> AbstractContextManager[Any]:
    """Measuring makes its small tensors on the host, whatever torch.set_default_device says."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def structure(model: nn.Module) -> dict[str, Any]:
    """What a model is made of, for its identity: class, modules with their types, parameters with their shapes."""
    return {
        "class": type(model).__name__,
        "modules": [[path, type(module).__name__] for path, module in model.named_modules()],
        "parameters": [[name, list(p.shape)] for name, p in model.named_parameters()],
    }


def short_hash(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
