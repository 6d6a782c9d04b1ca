"""Dimensionality, step by step, in anybody's own PyTorch training loop.

tracker = HighFrequencyTracker(model, sampling_frequency=5)
for step, batch in enumerate(batches):
    loss = train_step(batch)
    tracker.log(step, loss.item())
jumps = tracker.detect_jumps(metric="stable_rank")
"""

import json
import logging
import operator
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ndt_ray import native
from ndt_ray.analysis.detection import Detector
from ndt_ray.errors import NdtError, SpecError, did_you_mean
from ndt_ray.lanes.numerics import fingerprint
from ndt_ray.measurement.evaluate import Scores
from ndt_ray.store.reader import Store, open_store
from ndt_ray.tracking.arguments import check, refuse_fullgraph
from ndt_ray.tracking.meter import Meter, Spectra, short_hash, structure
from ndt_ray.tracking.notices import Notices
from ndt_ray.tracking.overhead import Overhead, Stopwatch
from ndt_ray.tracking.probe import Probe
from ndt_ray.tracking.recording import Existing, InMemory, InStore, Recording, begun_on
from ndt_ray.tracking.run_jumps import METRICS, Jump, column_of, jumps_in, rule_of
from ndt_ray.tracking.watch import Passes, Seen, Watch, choose, unwrapped

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


class HighFrequencyTracker:
    """Measures the layers of a model that is being trained; its loop only calls `log` after each step.

    Without a `probe`, the last training batch is measured: what the layers put out in the last forward pass in
    training mode with gradients (`passes="train"`) before `log`, thus before the update. A forward pass in eval mode
    or under `no_grad` in between changes nothing. With a `probe` (a tensor, a tuple of positional or a mapping of
    keyword inputs) `log` shows it to the model in eval mode, after the update. Neither changes the training by a bit.

    `layers`: modules, paths or glob patterns (default: every Linear, convolution and attention); `layer_names`: other
    names for them. Rows go to a `store` (path, URI or Store), as the trial of sweep `sweep` that `run` and the model's
    structure name, or stay in memory. `existing`: what to do where that run is there already: refuse, resume it where
    numerics are equal, resume_different (elsewhere too) or replace it. `steps`: planned
    updates, which phases are relative to. `views`: as in a sweep file. `spectra`: full, none, or how many eigenvalues
    a row keeps. `centred=False` measures the uncentred spectrum only, as ndtracker does, at a fraction of the cost.

    A layer that gave nothing to measure has a row that says `lost`, one that did not vary `dead`, NaN or infinite
    activations `nonfinite`, a batch of one row `few_rows`; reasons are logged, once each. Under DistributedDataParallel
    only rank 0 writes to a store; the others measure nothing. SpecError where an argument is wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        sampling_frequency: int = 5,
        layers: Sequence[Any] | nn.Module | str | None = None,
        layer_names: Sequence[str] | None = None,
        *,
        store: str | Path | Store | None = None,
        run: str = "run",
        sweep: str = "tracked",
        existing: Existing = "refuse",
        probe: Any = None,
        probe_labels: Tensor | None = None,
        steps: int | None = None,
        data: str | None = None,
        seed: int | None = None,
        views: Mapping[str, str] | None = None,
        spectra: Spectra = "full",
        centred: bool = True,
        passes: Passes = "train",
    ) -> None:
        check(model, sampling_frequency, spectra, passes, existing, probe, probe_labels)
        self.sampling_frequency = int(sampling_frequency)
        self._notices = Notices(run)
        self.run, self._steps, self._data, self._seed = run, steps, data, seed
        self._model = unwrapped(model)
        chosen = choose(self._model, layers, layer_names)
        self._probe = None if probe is None else Probe(probe, probe_labels)
        self._watch = Watch(self._model, chosen, "all" if self._probe else passes)
        self._identity = {
            "run": run,
            "structure": short_hash(structure(self._model)),
            "layers": [name for name, _ in chosen.values()],
            "probe": self._probe.hash if self._probe else None,
            "views": dict(views or {}),
        }
        self.trial_id = short_hash(self._identity)
        labels = None if self._probe is None else self._probe.labels
        self._meter = Meter(
            self.trial_id,
            chosen,
            views=views,
            spectra=spectra,
            centred=centred,
            velocity=self._probe is not None and centred,
            labels=labels,
            lost=self._notices.lost,
        )
        self._stopwatch = Stopwatch()
        self._first, self._logged = -1, -1
        self._logs = self._refused = 0
        self._closed = False
        self._active = store is None or _rank() == 0
        self._recording: Recording = InMemory(self._meter)
        self._mark = ""
        if self._active:
            if self._probe is not None:
                self._probe.rehearse(self._model, self._watch)
            else:
                refuse_fullgraph(model)
            self._begin(store, sweep, existing)
            if self._probe is None:
                self._watch.install()
        self._end = weakref.finalize(self, _abandon, self._watch, self._recording)
        self._end.atexit = False  # recordings in a store see to that themselves

    # -- in the loop -----------------------------------------------------------------------------------------------

    def log(
        self,
        step: int,
        loss: Any = None,
        grad_norm: Any = None,
        force: bool = False,
        *,
        lr: float | None = None,
    ) -> bool:
        """Say that the training step `step` is done; every `sampling_frequency`-th one (or `force`) is measured.

        `step` is what rows and jumps will say: the training step by the caller's own count, which must rise. A step
        that was logged before, or lies behind, is not measured again; that is logged once, and counted at the end.
        Returns whether it was measured. SpecError only where `step` is no whole number from 0, or after `close`.
        """
        begun = self._stopwatch.clock()
        step = self._checked(step)
        if not self._active:
            return False
        measured = (force or step % self.sampling_frequency == 0) and self._advances(step)
        if measured:
            with native.as_recorded(self._mark):
                self._measure(step, loss, grad_norm, lr)
        else:
            self._watch.drop()
        self._expect_next(step)
        self._stopwatch.stop(begun, measured)
        return measured

    def _checked(self, step: Any) -> int:
        if self._closed:
            raise SpecError("this tracker is closed: nothing more can be logged")
        try:
            number: int = operator.index(step)
        except TypeError:
            raise SpecError(f"step must be a whole number, the training step just done, but got {step!r}") from None
        if not 0 <= number < 2**31:
            raise SpecError(f"step must lie in 0..{2**31 - 1}, but got {number}")
        return number

    def _advances(self, step: int) -> bool:
        if step > self._meter.last:
            return True
        self._refused += 1
        self._notices.tell(
            "behind",
            f"step {step} was logged after step {self._meter.last} and is not measured: steps must rise over the whole "
            "training (a count that begins again each epoch does not)",
        )
        return False

    def _expect_next(self, step: int) -> None:
        """Guess whether the next step will be measured: what may be overwritten is copied only then."""
        ahead = step + max(step - self._logged, 1)
        self._watch.expected = self._logged < 0 or ahead % self.sampling_frequency == 0
        self._logged = step
        self._logs += 1
        if self._first < 0:
            self._first = step
        if self._meter.last < 0 and self._logs > 1 and step - self._first >= 2 * self.sampling_frequency:
            self._notices.tell(
                "never",
                f"nothing has been measured yet: none of the {self._logs} steps logged ({self._first} to {step}) is a "
                f"multiple of sampling_frequency={self.sampling_frequency}",
            )

    def _measure(self, step: int, loss: Any, grad_norm: Any, lr: float | None) -> None:
        seen, scores = self._look()
        scalars = self._scalars(loss, grad_norm, lr, scores)
        try:
            self._meter.measure(step, seen, self._watch.order, scalars)
        except Exception as error:
            # The last resort: whatever it is must not end somebody's training, and must not go unsaid either.
            self._notices.tell(f"failed {type(error).__name__}", f"step {step} could not be measured", error)
            self._meter.measure(step, Seen({}, dict.fromkeys(self._meter.layers, error)), {}, scalars)
        self._recording.settle(step)

    def _look(self) -> tuple[Seen, Scores | None]:
        if self._probe is None:
            return self._watch.take(), None
        try:
            return self._probe.show(self._model, self._watch)
        except Exception as error:
            self._notices.tell("probe", "the probe did not go through the model", error)
            return Seen({}, dict.fromkeys(self._meter.layers, error)), None

    def _scalars(self, loss: Any, grad_norm: Any, lr: Any, scores: Scores | None) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for name, value in (("batch_loss", loss), ("grad_norm", grad_norm), ("lr", lr)):
            row[name] = self._number(name, value)
        if scores is not None:
            row |= {"probe_loss": scores.loss, "probe_accuracy": scores.accuracy}
            row["probe_class_accuracy"] = [scores.class_accuracy.astype(np.float32)]
        return row

    def _number(self, name: str, value: Any) -> float | None:
        try:
            return None if value is None else float(value.detach() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError) as error:
            self._notices.tell(f"number {name}", f"{name} is not one number and is left out", error)
            return None

    # -- results ---------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the order of execution as far as it is known."""
        return self._meter.names()

    @property
    def overhead(self) -> Overhead:
        """What tracking has cost the loop so far, in this process; `close` logs its line."""
        return self._stopwatch.overhead()

    def get_results(self, layer: str | None = None) -> "dict[str, pd.DataFrame] | pd.DataFrame":
        """What was measured: a DataFrame by layer, or the one of `layer`.

        Columns: step, the measures of the centred spectrum (and `_uncentred`), n_stimuli, view, flag, loss, grad_norm,
        layer_index.
        """
        found = self._results()
        if layer is None:
            return found
        self._known(layer)
        return found[layer]

    def detect_jumps(
        self,
        layer: str | None = None,
        metric: str = "stable_rank",
        *,
        detector: str | Detector = "rolling_level",
        **parameters: Any,
    ) -> list[Jump]:
        """Jumps in one measure of all layers (or one), in order of time and then of layers.

        The default is ndtracker's rule: values more than `threshold` = 3 SDs from the mean of the `window` = 50
        before, from `min_samples` = 20 on (`ndt_ray.analysis.detection`). Series are judged where they have no holes;
        one that is too short, or constant within float32, gives none. None of the rules is calibrated against noise.
        """
        rule = rule_of(detector, parameters)
        column = column_of(metric)
        if layer is not None:
            self._known(layer)
        results = self._results()
        return jumps_in({name: rows for name, rows in results.items() if layer in (None, name)}, column, rule)

    def table(self, name: str) -> "pd.DataFrame":
        """The rows of this run in a table of the store: measurements, spectra, scalars, trials; velocity of a probe."""
        return self._recording.table(name).to_pandas()

    def _results(self) -> "dict[str, pd.DataFrame]":
        self._only_rank_0()
        scalars = self.table("scalars")[["step", "batch_loss", "grad_norm"]].rename(columns={"batch_loss": "loss"})
        rows = self.table("measurements").merge(scalars, on="step", how="left")
        first = ["step", *METRICS, "n_stimuli", "view", "flag", "loss", "grad_norm", "layer_index"]
        return {
            name: rows.loc[rows["layer"] == name, first].sort_values("step").reset_index(drop=True)
            for name in self.layers
        }

    def _known(self, layer: str) -> None:
        if layer not in self.layers:
            raise SpecError(f"no layer '{layer}' is tracked{did_you_mean(layer, self.layers)}")

    def _only_rank_0(self) -> None:
        if not self._active:
            raise SpecError("with a store, rank 0 alone records: ask its tracker, or the store")

    # -- beginning and end -----------------------------------------------------------------------------------------

    def _begin(self, store: str | Path | Store | None, sweep: str, existing: Existing) -> None:
        weight = next(self._model.parameters(), None)
        device = torch.device("cpu") if weight is None else weight.device
        if store is None:
            self._mark = fingerprint(device)
        else:
            opened = store if isinstance(store, Store) else open_store(store, create=True)
            pack = f"run-{self.trial_id}"
            with native.as_recorded(begun_on(opened, sweep, pack, existing)):
                self._mark = fingerprint(device)
            self._recording = InStore(
                self._meter, opened, sweep, pack, self.trial_id, existing=existing, fingerprint=self._mark
            )
        try:
            if self._recording.resumed is not None:
                self._meter.load(self._recording.resumed)
                return
            self._recording.rows("trials", self._trial())
            self._recording.flush()
        except BaseException:
            _abandon(self._watch, self._recording)
            raise

    def _trial(self) -> dict[str, Any]:
        measured = "training batch" if self._probe is None else "probe"
        spec = {**self._identity, "measure": {"every": self.sampling_frequency, "of": measured}}
        row = {
            "trial_id": self.trial_id,
            "lane": 0,
            "cell": self.run,
            "model": type(self._model).__name__,
            "data": self._data,
            "seed": self._seed,
            "control": "none",
            "engine": "tracker",
            "steps": self._steps,
            "n_parameters": sum(p.numel() for p in self._model.parameters()),
            "fingerprint": self._mark,
            "spec": json.dumps(spec, sort_keys=True),
        }
        if self._probe is not None:
            row |= {"probe_size": self._probe.size, "probe_hash": self._probe.hash}
        return row

    def close(self) -> None:
        """Take the hooks off and finish the run; StoreError where rows could not be stored. Results stay readable."""
        self._close(finished=True)

    def _close(self, finished: bool, error: str | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        self._end.detach()
        self._watch.remove()
        if self._refused:
            log.warning(
                "%d logged steps were not measured: they were not later than one measured before", self._refused
            )
        if self._active:
            log.info("run %s: %s", self.run, self.overhead)
            if finished:
                last = max(self._logged, self._meter.last, 0)
                self._recording.rows("outcomes", {"trial_id": self.trial_id, "status": "finished", "last_step": last})
            self._recording.close(finished=finished, error=error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        try:  # what is stored can be resumed
            self._close(finished=False, error=f"{type(error).__name__}: {error}".partition("\n")[0])
        except NdtError as failure:
            log.error("%s", failure)  # the error of the loop is the one to see


def _rank() -> int:
    distributed = torch.distributed
    return int(distributed.get_rank()) if distributed.is_available() and distributed.is_initialized() else 0


def _abandon(watch: Watch, recording: Recording) -> None:
    """When a tracker is gone without having been closed: hooks come off, rows are kept, the run can be resumed."""
    watch.remove()
    try:
        recording.close(finished=False)
    except NdtError as error:
        log.error("%s", error)
