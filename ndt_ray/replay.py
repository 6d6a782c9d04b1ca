"""Any step of any trial again: from the nearest checkpoint before it, bit for bit, every loss on the way compared.

A replay is of the trial only on the numerics it was trained with (its fingerprint): elsewhere it is refused, or, for a
look, made into files that say that nothing vouches for them. It is told by the stored mini-batch losses, which depend
on all weights: the state of a step is written once the losses up to it, and the first that it gives itself, are equal.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ndt_ray import native
from ndt_ray.errors import CheckpointError, SpecError, StoreError, did_you_mean
from ndt_ray.jobs import ForeignFingerprint
from ndt_ray.lanes.numerics import fingerprint
from ndt_ray.sink import Arrays
from ndt_ray.spec import Trial
from ndt_ray.store.checkpoints import encode_tensors, read_checkpoint
from ndt_ray.store.filesystem import Location
from ndt_ray.store.reader import Store
from ndt_ray.store.replays import Saved, save_replay
from ndt_ray.store.sweep import open_sweep
from ndt_ray.train import Retrace
from ndt_ray.worker import make_pack, prepared

Notify = Callable[[str], None]


class ReplayMismatch(CheckpointError):
    """The losses on the way are not those of the trial: what was computed is another trajectory. Exit code 3."""


@dataclass(frozen=True)
class Replayed:
    """A state that is there now; `new` unless the store held it before, `verified` unless it was made elsewhere."""

    trial_id: str
    step: int
    path: str
    bytes: int
    sha256: str
    new: bool = True
    verified: bool = True


@dataclass
class Replay:
    """What a replay did."""

    trial_id: str
    states: list[Replayed] = field(default_factory=list)
    updates: int = 0
    """Computed again."""
    compared: int = 0
    """Losses that are equal to the stored ones, to the last bit."""
    first_difference: int | None = None
    """Step of the first that is not; only where differing was allowed."""
    rows: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    """Batches of `measurements` and `spectra`, if it was to measure."""


def replay(
    store: Store,
    sweep: str,
    trial: str,
    steps: Iterable[int],
    *,
    out: str | Path | None = None,
    measure: bool = False,
    allow_different: bool = False,
    notify: Notify | None = None,
) -> Replay:
    """Brings the states of a trial at `steps` back, in one pass; `trial` is its id or the beginning of it.

    Each becomes a checkpoint of the sweep (reason `replay`) with its confirmations, or with `out` a file in a folder.
    With `measure` the detect probe is measured at each too. A checkpoint that is corrupt is told of, and passed over.
    SpecError for steps that were not trained, ReplayMismatch where a loss differs, ForeignFingerprint on other
    numerics; `allow_different` goes on all the same, needs `out`, and its files say that they are not verified.
    """
    known = find_trial(store, sweep, trial)
    wanted = sorted(set(steps))
    _check(known, wanted)
    if allow_different and out is None:
        raise SpecError("--allow-different needs --out: what is not verified has no place in the sweep")
    job = _Job(store, sweep, known, None if out is None else Path(out), notify or (lambda _: None))
    here = {row["step"]: row for row in job.checkpoints}
    report = Replay(known["trial_id"])
    missing = [s for s in wanted if out is not None or s not in here or measure]
    if missing:
        on_gpu = " cuda" in known["fingerprint"] and torch.cuda.is_available()
        with prepared(float(on_gpu)) as device, native.as_recorded(known["fingerprint"]):
            same = fingerprint(device) == known["fingerprint"]
            if not same and not allow_different:
                raise ForeignFingerprint(
                    f"trial {known['trial_id']} was trained on '{known['fingerprint']}', and this machine is "
                    f"'{fingerprint(device)}': its numbers would not be the trial's. Replay it there; for a look, "
                    "--allow-different --out FOLDER makes states that are not verified"
                )
            sink = _Rows()
            pack = make_pack([job.trial], (known["cell"],), device)
            job.run(Retrace(pack, sink), sink, missing, measure, strict=same, report=report)
    for step in sorted(set(wanted) - {s.step for s in report.states}):
        row = here[step]
        report.states.append(Replayed(known["trial_id"], step, row["path"], row["bytes"], row["sha256"], new=False))
    report.states.sort(key=lambda s: s.step)
    return report


def find_trial(store: Store, sweep: str, prefix: str) -> dict[str, Any]:
    """trial_id, cell, fingerprint, spec, pack and last trained step of the one trial whose id begins so; SpecError."""
    open_sweep(store, sweep)
    columns = "t.trial_id, t.cell, t.fingerprint, t.spec, t.pack, max(l.step) AS trained"
    rows = store.arrow(
        f"SELECT {columns} FROM trials t LEFT JOIN losses l ON l.sweep = t.sweep AND l.pack = t.pack AND "
        "l.trial_id = t.trial_id WHERE t.sweep = ? AND starts_with(t.trial_id, ?) GROUP BY ALL ORDER BY t.trial_id",
        [sweep, prefix],
    ).to_pylist()
    if len(rows) == 1 and prefix:
        return {**rows[0], "trained": rows[0]["trained"] or 0}
    ids = store.arrow("SELECT trial_id FROM trials WHERE sweep = ?", [sweep])["trial_id"].to_pylist()
    if not rows:
        raise SpecError(f"sweep {sweep} has no trial '{prefix}'{did_you_mean(prefix, ids)}")
    several = ", ".join(row["trial_id"] for row in rows[:5])
    raise SpecError(f"'{prefix}' is the beginning of {len(rows)} trials of {sweep} ({several}…): give more of the id")


def _check(known: Mapping[str, Any], wanted: Sequence[int]) -> None:
    if not wanted:
        raise SpecError("no step to replay: give --step")
    outside = [s for s in wanted if not 0 <= s <= known["trained"]]
    if outside:
        raise SpecError(
            f"trial {known['trial_id']} was trained from step 0 to {known['trained']}, but got step {outside[0]}"
        )


@dataclass(frozen=True)
class _Job:
    store: Store
    sweep: str
    known: Mapping[str, Any]
    out: Path | None
    notify: Notify

    @property
    def trial(self) -> Trial:
        return Trial.model_validate_json(self.known["spec"])

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        """Of the trial, ascending."""
        query = "SELECT step, path, sha256, bytes FROM checkpoints WHERE sweep = ? AND trial_id = ? ORDER BY step"
        rows: list[dict[str, Any]] = self.store.arrow(query, [self.sweep, self.known["trial_id"]]).to_pylist()
        return rows

    def losses(self, to: int) -> dict[int, float]:
        """By step; NaN where the loss was not a number, which is stored as null."""
        rows = self.store.arrow(
            "SELECT step, loss FROM losses WHERE sweep = ? AND pack = ? AND trial_id = ? AND step <= ?",
            [self.sweep, self.known["pack"], self.known["trial_id"], to],
        ).to_pylist()
        return {row["step"]: math.nan if row["loss"] is None else row["loss"] for row in rows}

    def run(
        self, retrace: Retrace, sink: "_Rows", wanted: Sequence[int], measure: bool, *, strict: bool, report: Replay
    ) -> None:
        """Every wanted step from the nearest checkpoint before it; a state is written once it is vouched for."""
        compare = _Comparison(self.known["trial_id"], self.losses(wanted[-1] + 1), strict, report)
        for step in wanted:
            self._approach(retrace, step)
            while retrace.step < step:
                compare(retrace.advance(), retrace.step)
            state = retrace.state()
            retrace.confirm()
            rows = sink.taken()
            if measure:
                retrace.measure()
                for table, batches in sink.taken().items():
                    report.rows.setdefault(table, []).extend(batches)
            if step + 1 in compare.stored:
                compare(retrace.advance(), retrace.step)
            self._save(step, state, rows, strict, report)

    def _approach(self, retrace: Retrace, step: int) -> None:
        """To the newest whole checkpoint at or before a step, where that is nearer than where it stands."""
        for row in reversed([r for r in self.checkpoints if retrace.step < r["step"] <= step]):
            try:
                state, _ = read_checkpoint(self.store.location, row["path"], row["sha256"])
            except CheckpointError as error:
                self.notify(f"{error}; going on from the one before")
                continue
            retrace.jump(row["step"], state)
            return

    def _save(
        self, step: int, state: Arrays, rows: dict[str, list[Mapping[str, Any]]], strict: bool, report: Replay
    ) -> None:
        known, verified = self.known, strict and report.first_difference is None
        trial_id = known["trial_id"]
        if self.out is not None:
            saved = _file(self.out, trial_id, step, state, None if verified else _doubt(report, known))
        elif any(row["step"] == step for row in self.checkpoints):
            return  # it was only measured
        else:
            numerics = known["fingerprint"]
            saved = save_replay(self.store, self.sweep, known["pack"], trial_id, step, state, rows, numerics)
        report.states.append(Replayed(trial_id, step, saved.path, saved.bytes, saved.sha256, verified=verified))


def _doubt(report: Replay, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of itself that nothing vouches for."""
    return {"verified": False, "trained_on": known["fingerprint"], "first_difference": report.first_difference}


class _Comparison:
    """Losses computed again against the stored ones, bit for bit."""

    def __init__(self, trial_id: str, stored: Mapping[int, float], strict: bool, report: Replay) -> None:
        self.trial_id, self.stored, self.strict, self.report = trial_id, stored, strict, report

    def __call__(self, loss: float, step: int) -> None:
        self.report.updates += 1
        if step not in self.stored:
            raise StoreError(
                f"trial {self.trial_id}: the loss of step {step} is not stored, so that nothing vouches for a replay - "
                "`ndt query` the table losses"
            )
        expected = self.stored[step]
        if loss == expected or (math.isnan(loss) and math.isnan(expected)):
            self.report.compared += 1
        elif self.strict:
            raise ReplayMismatch(
                f"trial {self.trial_id}: the loss of step {step} is {loss!r} and was {expected!r}: this is another "
                "trajectory. Was the trial trained by another version of the code, or on other data? Nothing that "
                "follows was written"
            )
        elif self.report.first_difference is None:
            self.report.first_difference = step


class _Rows:
    """A sink that keeps rows until they are taken."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Mapping[str, Any]]] = {}

    def rows(self, table: str, columns: Mapping[str, Any]) -> None:
        self.kept.setdefault(table, []).append(columns)

    def taken(self) -> dict[str, list[Mapping[str, Any]]]:
        found, self.kept = self.kept, {}
        return found

    def checkpoint(self, trial_id: str, step: int, tensors: Arrays, reason: str) -> None:
        raise AssertionError("a replay saves by itself")

    def heartbeat(self, step: int, state: Callable[[], Arrays], progress: Mapping[str, float]) -> bool:
        raise AssertionError

    def commit(self, step: int, state: Callable[[], Arrays], finished: bool) -> None:
        raise AssertionError


def _file(folder: Path, trial_id: str, step: int, state: Arrays, note: Mapping[str, Any] | None) -> Saved:
    """A checkpoint file in a folder; unverified ones say so in their name and in themselves."""
    name = f"{trial_id}_step_{step:09d}{'' if note is None else '_unverified'}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    location = Location.of(str(folder))
    with location.writing(name) as stream:
        stream.write(encode_tensors(state, {"trial_id": trial_id, "step": step, **(note or {})}))
    return Saved(str(folder / name), stream.bytes, stream.sha256)


def every(first: int, until: int | None, distance: int | None) -> Iterator[int]:
    """The steps of `--step S --until T --every k`: S, S + k, …, not beyond T; S alone without T."""
    if until is None:
        if distance is not None:
            raise SpecError("--every needs --until")
        return iter([first])
    if until < first or (distance is not None and distance < 1):
        raise SpecError(f"steps must ascend, but got (step={first}, {until=}, every={distance})")
    return iter(range(first, until + 1, distance or 1))
