"""Measuring a series of checkpoints that somebody already has: weights only, one pass over a probe for each."""

import glob
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ndt_ray import registry
from ndt_ray.errors import CheckpointError, NdtError, SpecError
from ndt_ray.inputs import InputSpec
from ndt_ray.lanes.numerics import fingerprint
from ndt_ray.models import build, load_user_factory
from ndt_ray.models.user import source_hash, split_target
from ndt_ray.store.reader import Store, open_store
from ndt_ray.tracking.meter import Meter, Spectra, short_hash, structure
from ndt_ray.tracking.probe import Probe
from ndt_ray.tracking.probe_files import ProbeData, read_probe
from ndt_ray.tracking.recording import InStore
from ndt_ray.tracking.watch import Watch, choose
from ndt_ray.tracking.weight_files import SUFFIXES, load_weights, read_step, read_weights

STEP_PATTERN = r"(?:step|iter(?:ation)?|update|ckpt|checkpoint)s?[-_=]?(\d+)"
"""Where a file's name says its step, unless told otherwise; else the last number in it."""

Progress = Callable[[int, int, str], None]
"""Told (files done, files in all, name of the file)."""


@dataclass(frozen=True)
class SeriesReport:
    """What came of a series. `gaps`: (step before, step after) of each distance above the most common one."""

    sweep: str
    run: str
    trial_id: str
    layers: tuple[str, ...]
    steps: tuple[int, ...]
    gaps: tuple[tuple[int, int], ...]
    skipped: tuple[tuple[str, str], ...]
    """(file, why) of files that could not be measured."""

    @property
    def exit_code(self) -> int:
        """1 where a file was skipped."""
        return 1 if self.skipped else 0


def measure_series(
    factory: str | Callable[..., Any],
    checkpoints: str | Path | Sequence[str | Path],
    probe: str | Path | ProbeData,
    store: str | Path | Store,
    *,
    params: Mapping[str, Any] | None = None,
    run: str | None = None,
    sweep: str = "series",
    step_pattern: str | None = None,
    probe_size: int | None = None,
    probe_seed: int = 0,
    layers: Sequence[str] | None = None,
    views: Mapping[str, str] | None = None,
    spectra: Spectra = "full",
    progress: Progress = lambda done, total, name: None,
) -> SeriesReport:
    """Measure the layers of one model at every checkpoint of a series, and write the rows of a trial to a store.

    `factory`: FILE.py:NAME, a registered model or a callable, with `params`. `checkpoints`: files, folders or glob
    patterns. `probe`: see `probe_files.read_probe`. The step of a file is what it says in its content, else what
    `step_pattern` (a regular expression with one group) finds in its name. Written: trials, measurements, spectra,
    velocity, scalars, outcomes; what an earlier call wrote of the same series is replaced. A file that is damaged or
    does not fit is skipped and named in the report.
    CheckpointError where no file can be measured, or already the first does not fit the model.
    """
    pattern = _pattern(step_pattern)
    data = probe if isinstance(probe, ProbeData) else read_probe(probe, probe_size, probe_seed)
    model = _model(factory, data.spec, params or {})
    series = _Series(
        model, data, run or _run_name(checkpoints), sweep, choose(model, layers), views, spectra, _source(factory)
    )
    found, skipped = _ordered(_files(checkpoints), pattern)
    if not found:
        raise CheckpointError("no checkpoint of the series can be read:\n" + _told(skipped))
    series.measure(found, skipped, open_store(store, create=True) if not isinstance(store, Store) else store, progress)
    return series.report(skipped)


class _Series:
    """One model through all its checkpoints."""

    def __init__(
        self,
        model: nn.Module,
        data: ProbeData,
        run: str,
        sweep: str,
        layers: Mapping[str, tuple[str, str]],
        views: Mapping[str, str] | None,
        spectra: Spectra,
        source: str | None,
    ) -> None:
        self.model, self.data, self.run, self.sweep = model, data, run, sweep
        self.probe = Probe(data.inputs, data.labels)
        self.watch = Watch(model, layers, "all")
        self.identity = {
            "run": run,
            "structure": short_hash(structure(model)),
            "source": source,
            "layers": [name for name, _ in layers.values()],
            "probe": self.probe.hash,
            "views": dict(views or {}),
        }
        self.trial_id = short_hash(self.identity)
        self.meter = Meter(self.trial_id, layers, views=views, spectra=spectra, velocity=True, labels=self.probe.labels)
        self.start: dict[str, Tensor] = {}
        self.steps: list[int] = []

    def measure(
        self, found: Sequence[tuple[int, Path]], skipped: list[tuple[str, str]], store: Store, progress: Progress
    ) -> None:
        """Measures all; the store is opened for writing once the first of them has been."""
        recording: InStore | None = None
        try:
            for done, (step, path) in enumerate(found):
                progress(done, len(found), path.name)
                try:
                    self._at(step, path)
                except CheckpointError as error:
                    if not self.steps and "is no checkpoint of this" in str(error):
                        raise
                    skipped.append((str(path), str(error)))
                    continue
                recording = recording or self._begin(store)
                recording.settle(step)
                self.steps.append(step)
            if recording is None:
                raise CheckpointError("no checkpoint of the series can be measured:\n" + _told(skipped))
            recording.rows("trials", self._trial(skipped))
            ended = {"trial_id": self.trial_id, "status": "finished", "last_step": self.steps[-1]}
            recording.rows("outcomes", ended)
            recording.close(finished=True)
        except BaseException as error:
            if recording is not None:
                recording.close(finished=False, error=f"{type(error).__name__}: {error}".partition("\n")[0])
            raise
        progress(len(found), len(found), "")

    def _begin(self, store: Store) -> InStore:
        return InStore(
            self.meter,
            store,
            self.sweep,
            f"series-{self.trial_id}",
            self.trial_id,
            existing="replace",
            fingerprint=fingerprint(torch.device("cpu")),
        )

    def _at(self, step: int, path: Path) -> None:
        load_weights(self.model, read_weights(path))
        try:
            seen, scores = self.probe.show(self.model, self.watch)
        except NdtError:
            raise
        except Exception as error:
            raise SpecError(
                f"the probe {self.data.name} {list(self.data.inputs.shape)} does not go through "
                f"{type(self.model).__name__}: {type(error).__name__}: {error}"
            ) from error
        row: dict[str, Any] = {**self._norms(step)}
        if scores is not None:
            row |= {"probe_loss": scores.loss, "probe_accuracy": scores.accuracy}
            row["probe_class_accuracy"] = [scores.class_accuracy.astype(np.float32)]
        self.meter.measure(step, seen, self.watch.order, row)

    def _norms(self, step: int) -> dict[str, float | None]:
        now = {name: p.detach().double() for name, p in self.model.named_parameters()}
        if step == 0:
            self.start = {name: p.clone() for name, p in now.items()}
        moved = sum(float((p - self.start[name]).square().sum()) for name, p in now.items()) if self.start else None
        return {
            "weight_norm": sum(float(p.square().sum()) for p in now.values()) ** 0.5,
            "init_distance": None if moved is None else moved**0.5,
        }

    def _trial(self, skipped: Sequence[tuple[str, str]]) -> dict[str, Any]:
        spec = {
            **self.identity,
            "measure": {"every": _distance(self.steps), "of": "checkpoints"},
            "steps": self.steps,
            "gaps": _gaps(self.steps),
            "skipped": skipped,
        }
        return {
            "trial_id": self.trial_id,
            "lane": 0,
            "cell": self.run,
            "model": type(self.model).__name__,
            "data": self.data.name,
            "control": "none",
            "engine": "checkpoints",
            "steps": self.steps[-1],
            "n_parameters": sum(p.numel() for p in self.model.parameters()),
            "probe_size": self.probe.size,
            "probe_hash": self.probe.hash,
            "data_completeness": self.data.completeness,
            "data_hash": self.data.data_hash,
            "fingerprint": fingerprint(torch.device("cpu")),
            "spec": json.dumps(spec, sort_keys=True),
        }

    def report(self, skipped: Sequence[tuple[str, str]]) -> SeriesReport:
        gaps = tuple((before, after) for before, after in _gaps(self.steps))
        layers = tuple(self.meter.names())
        return SeriesReport(self.sweep, self.run, self.trial_id, layers, tuple(self.steps), gaps, tuple(skipped))


def _model(factory: str | Callable[..., Any], inputs: InputSpec | None, params: Mapping[str, Any]) -> nn.Module:
    if isinstance(factory, str):
        factory = load_user_factory(factory) if ".py:" in factory else registry.resolve("model", factory)
    if inputs is None:
        _need_no_inputs(factory, params)
        inputs = InputSpec("image", (1, 1, 1), 2)  # not looked at by such a factory
    return build(factory, inputs, params, 0)


def _need_no_inputs(factory: Callable[..., Any], params: Mapping[str, Any]) -> None:
    try:
        needed = [p for p in inspect.signature(factory).parameters.values() if p.name not in params]
    except ValueError:
        return
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next((p for p in needed if p.name == "inputs" or (p.default is p.empty and p.kind in positional)), None)
    if first is not None:
        raise SpecError(
            f"model '{getattr(factory, '__name__', factory)}' needs '{first.name}': give it as a parameter; or, if it "
            "is to say what the data are like (InputSpec), probe with a data set, or with images and labels"
        )


def _source(factory: str | Callable[..., Any]) -> str | None:
    """The SHA-256 of the user's own model file: part of what the series is."""
    if isinstance(factory, str) and ".py:" in factory:
        return source_hash(split_target(factory)[0])
    return None


def _files(checkpoints: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that paths, folders and patterns name, each once; CheckpointError for one that names none."""
    listed = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    files: dict[Path, None] = {}
    for one in listed:
        path = Path(one).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
        elif path.exists():
            found = [path]
        else:
            found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not found:
            raise CheckpointError(f"no checkpoint at {one} (looked from {Path.cwd()}): put the pattern in quotes")
        files |= dict.fromkeys(found)
    if not files:
        raise CheckpointError("no checkpoints: give files, a folder or a pattern in quotes")
    return list(files)


def _ordered(files: Sequence[Path], pattern: re.Pattern[str] | None) -> tuple[list[tuple[int, Path]], list[Any]]:
    """(step, file) by step, and (file, why) of those without one."""
    by_step: dict[int, Path] = {}
    skipped: list[tuple[str, str]] = []
    for path in files:
        try:
            step = read_step(path)
            if step is None:
                step = _step_of_name(path, pattern)
            if step >= 2**31:
                raise CheckpointError(f"{path}: step {step} is too large")
            if step in by_step:
                raise CheckpointError(f"{path} is of step {step}, as is {by_step[step]}: leave one out")
            by_step[step] = path
        except CheckpointError as error:
            skipped.append((str(path), str(error)))
    return sorted(by_step.items()), skipped


def _step_of_name(path: Path, pattern: re.Pattern[str] | None) -> int:
    name = path.name.removesuffix(path.suffix)
    if pattern is not None:
        found = pattern.search(path.name)
        digits = found[1] if found else None
    else:
        named = re.search(STEP_PATTERN, name, re.IGNORECASE)
        digits = named[1] if named else next(reversed(re.findall(r"\d+", name)), None)
    if digits is None or not digits.isdigit():
        raise CheckpointError(
            f"{path} says its step neither inside nor in its name: give --step-pattern, a regular expression whose "
            r"group is the step, such as 'it(\d+)'"
        )
    return int(digits)


def _pattern(text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise SpecError(f"--step-pattern {text!r} is no regular expression: {error}") from error
    if pattern.groups != 1:
        raise SpecError(f"--step-pattern {text!r} must have one group, the step, but has {pattern.groups}")
    return pattern


def _run_name(checkpoints: str | Path | Sequence[str | Path]) -> str:
    first = checkpoints if isinstance(checkpoints, str | Path) else next(iter(checkpoints), "series")
    path = Path(first).expanduser()
    folder = path if path.is_dir() else path.parent
    return folder.resolve().name or "series"


def _distance(steps: Sequence[int]) -> int:
    """The most common distance of the series."""
    if len(steps) < 2:
        return 1
    found, counts = np.unique(np.diff(steps), return_counts=True)
    return int(found[counts.argmax()])


def _gaps(steps: Sequence[int]) -> list[tuple[int, int]]:
    every = _distance(steps)
    return [(a, b) for a, b in zip(steps, steps[1:], strict=False) if b - a > every]


def _told(skipped: Sequence[tuple[str, str]]) -> str:
    return "\n".join(why for _, why in skipped[:20]) + (
        f"\n… and {len(skipped) - 20} more" if len(skipped) > 20 else ""
    )
