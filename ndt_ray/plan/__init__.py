"""From a sweep to packs: which trials there are, fully resolved, which train together, and what it will cost.

A trial is resolved when nothing in it is left to a default or to `auto`: parameters of its factories, engine, width,
the hash of a user's own model file. Trials of the same computation, which differ only in `STACKABLE`, are lanes of
packs. A pack that was claimed by a run never changes: only trials that no claimed pack holds form new ones.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ndt_ray.branching import trained_share
from ndt_ray.errors import DataError, SpecError, did_you_mean
from ndt_ray.plan.estimate import START_SECONDS, DataFacts, Estimate, ModelFacts, makespan, pack_estimate
from ndt_ray.plan.resolve import Catalogue as Catalogue
from ndt_ray.plan.resolve import Lane as Lane
from ndt_ray.plan.resolve import Resolver
from ndt_ray.spec import Control, Seeds, Trial
from ndt_ray.spec.axes import Grid, Sweep, TrialFilter, resolved_filter

STACKABLE = ("seed", "control", "train.lr", "train.weight_decay")
"""What may differ between the lanes of one pack."""
LARGE = 100_000
"""Trials from which on planning takes noticeable time and memory: said before it starts."""
PLAN_SECONDS, PLAN_BYTES = 6e-5, 700
"""Per trial (measured: 1e6 trials, one core)."""
MAX_PROBLEMS = 20
EXPENSIVE_SECONDS = 5.0
"""A pack cheaper than this is not split for the sake of idle workers: starting another costs as much as it saves."""


@dataclass(frozen=True)
class Pack:
    """Trials that train together: one computation, one lane each."""

    pack_id: str
    key: str
    """What the trials share: a hash of all of them but `STACKABLE`."""
    first: Trial
    lanes: tuple[Lane, ...]
    claimed: bool = False
    estimate: Estimate | None = None

    @property
    def trials(self) -> list[Trial]:
        """The trials, made anew at each call, in the order of their lanes."""
        return [_trial(self.first, lane) for lane in self.lanes]

    @property
    def trial_ids(self) -> list[str]:
        return [lane.trial_id for lane in self.lanes]

    @property
    def seconds(self) -> float:
        """Estimated, of one worker."""
        return self.estimate.seconds if self.estimate else 0.0


@dataclass(frozen=True)
class Plan:
    """A sweep's packs in the order of its grid, and what planning had to say."""

    sweep: Sweep
    packs: tuple[Pack, ...]
    workers: int
    device: str = "cpu"
    notices: tuple[str, ...] = ()
    outside: tuple[Pack, ...] = field(default=())
    """Claimed packs none of whose trials is in this grid: kept on record, not run."""

    @property
    def n_trials(self) -> int:
        return sum(len(pack.lanes) for pack in self.packs)

    @property
    def total(self) -> Estimate:
        """All packs together: seconds of one worker, the largest worker's memory, disk by table."""
        total = Estimate()
        for pack in self.packs:
            total = total + (pack.estimate or Estimate(calibrated=False))
        return total

    @property
    def wall_seconds(self) -> float:
        """From the command to the end, with all workers at work."""
        return START_SECONDS + makespan((pack.seconds for pack in self.packs), self.workers)

    def longest_first(self) -> list[Pack]:
        """The order in which workers should take packs, so that none is left with a long one at the end."""
        return sorted(self.packs, key=lambda pack: -pack.seconds)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per trial, for a table."""
        for pack in self.packs:
            for place, (lane, trial) in enumerate(zip(pack.lanes, pack.trials, strict=True)):
                seed = lane.seed[0] if len(set(lane.seed)) == 1 else None
                yield {
                    "trial_id": lane.trial_id,
                    "pack_id": pack.pack_id,
                    "lane": place,
                    "cell": lane.cell,
                    "model": trial.model.name,
                    "data": trial.data.name,
                    "seed": seed,
                    "control": lane.control,
                    "engine": trial.engine,
                    "steps": trial.train.steps,
                    "seconds": pack.seconds / len(pack.lanes),
                }


def make_plan(
    sweep: Sweep,
    catalogue: Catalogue,
    *,
    workers: int = 1,
    claimed: Iterable[Pack] = (),
    notify: Callable[[str], None] | None = None,
) -> Plan:
    """The plan of a sweep for so many workers.

    `claimed` packs (of an earlier plan, see `planfile.read_plan`) keep their members; they are in the plan if any of
    their trials is in the grid. `notify` gets each notice when it arises, so that a large grid is announced before
    the work. SpecError that lists what does not fit; also for a grid without trials.
    """
    return _Planner(sweep, catalogue, workers, list(claimed), notify).plan()


@dataclass
class _Group:
    """Trials of one computation."""

    first: Trial
    data: DataFacts
    model: ModelFacts
    lanes: list[Lane] = field(default_factory=list)


class _Planner:
    def __init__(
        self,
        sweep: Sweep,
        catalogue: Catalogue,
        workers: int,
        claimed: list[Pack],
        notify: Callable[[str], None] | None,
    ) -> None:
        self.sweep, self.catalogue, self.workers = sweep, catalogue, max(1, workers)
        self.device = "cuda" if sweep.run.gpus else "cpu"
        self.claimed = [replace(pack, claimed=True) for pack in claimed]
        self.notify = notify or (lambda _: None)
        self.notices: list[str] = []
        self.problems: dict[str, None] = {}
        self.estimates: dict[tuple[str, int], Estimate] = {}
        self.resolver = Resolver(sweep, catalogue, self.device)

    def plan(self) -> Plan:
        self._check_analyses()
        groups, found, duplicates = self._collect()
        if self.problems:
            raise SpecError("\n".join(f"sweep {self.sweep.name}: {p}" for p in self.problems))
        if not found:
            raise SpecError(self._why_empty())
        if duplicates:
            self._notice(f"{duplicates:,} duplicate trials collapsed: {len(found):,} are left")
        kept = [pack for pack in self.claimed if found.intersection(pack.trial_ids)]
        outside = [pack for pack in self.claimed if not found.intersection(pack.trial_ids)]
        beyond = sum(len(set(pack.trial_ids) - found) for pack in kept)
        if beyond:
            self._notice(f"{beyond} trials outside of this grid run along: their packs were claimed with them")
        packs = [*kept, *self._packs(groups)]
        estimated = tuple(replace(pack, estimate=self._estimate(pack)) for pack in packs)
        return Plan(self.sweep, estimated, self.workers, self.device, tuple(self.notices), tuple(outside))

    def _notice(self, text: str) -> None:
        self.notices.append(text)
        self.notify(text)

    def _check_analyses(self) -> None:
        known = self.catalogue.names("analysis")
        for analysis in self.sweep.analyses:
            if analysis.name not in known:
                self._problem(f"analyses: unknown analysis '{analysis.name}'{did_you_mean(analysis.name, known)}")

    def _collect(self) -> tuple[dict[str, _Group], set[str], int]:
        """Groups of unclaimed trials by what they share, the ids of all trials of the grid, and how many came twice."""
        grid = Grid(self.sweep)
        if grid.size > LARGE:
            told = f"planning takes about {grid.size * PLAN_SECONDS:.0f} s and {grid.size * PLAN_BYTES / 1e9:.1f} GB"
            self._notice(f"a grid of {grid.size:,} points: {told}")
        keep, late = TrialFilter(self.sweep), resolved_filter(self.sweep)
        taken = {trial_id for pack in self.claimed for trial_id in pack.trial_ids}
        groups: dict[str, _Group] = {}
        found: set[str] = set()
        duplicates = 0
        for point in grid.product():
            trial = grid.trial(point)
            if not keep(trial):
                continue
            try:
                resolved = self.resolver.resolve(trial)
            except DataError:
                raise  # its own kind of error, and no use to go on
            except SpecError as error:
                self._problem(str(error))
                continue
            if late is not None and not late(resolved.trial):
                continue
            if resolved.lane.trial_id in found:
                duplicates += 1
                continue
            found.add(resolved.lane.trial_id)
            if resolved.lane.trial_id not in taken:
                group = groups.setdefault(resolved.key, _Group(resolved.trial, resolved.data, resolved.model))
                group.lanes.append(resolved.lane)
        for i in (i for i, hits in enumerate(keep.hits) if not hits):
            self._notice(f"exclude[{i}] ({self.sweep.exclude[i]}) matches no trial")
        return groups, found, duplicates

    def _problem(self, text: str) -> None:
        self.problems[text] = None
        if len(self.problems) >= MAX_PROBLEMS:
            raise SpecError("\n".join(f"sweep {self.sweep.name}: {p}" for p in self.problems) + "\n… and perhaps more")

    def _why_empty(self) -> str:
        tried = [f"exclude={list(self.sweep.exclude)}"] if self.sweep.exclude else []
        tried += [f"where={self.sweep.where!r}"] if self.sweep.where else []
        varied = "; ".join(f"{axis.path}: {_some(axis.points())}" for axis in self.sweep.axes)
        return (
            f"sweep {self.sweep.name}: no trial is left of {Grid(self.sweep).size:,} points after "
            f"{' and '.join(tried) or 'nothing'}. The axes are {varied or 'none'}"
        )

    # -- packs -----------------------------------------------------------------------------------------------------

    def _packs(self, groups: dict[str, _Group]) -> Iterator[Pack]:
        """New packs; how many depends on the grid, the workers and operation counts, never on a measured time."""
        most = {key: self._most_lanes(group) for key, group in groups.items()}
        guesses = {key: self._guess(group, min(most[key], len(group.lanes))) for key, group in groups.items()}
        total = sum(guesses[key] * math.ceil(len(group.lanes) / most[key]) for key, group in groups.items())
        expensive = max(EXPENSIVE_SECONDS, total / (4 * self.workers))
        for key, group in groups.items():
            n = len(group.lanes)
            if any("@" in lane.control for lane in group.lanes):
                group.lanes = _by_branch(group.lanes)
            count = math.ceil(n / most[key])
            if self.sweep.run.lanes == "auto" and guesses[key] > expensive:
                count = max(count, min(n, self.workers))
            for start, stop in _balanced(n, count):
                lanes = tuple(group.lanes[start:stop])
                yield Pack(pack_id([lane.trial_id for lane in lanes]), key, _trial(group.first, lanes[0]), lanes)

    def _most_lanes(self, group: _Group) -> int:
        most = auto_lanes(group.model.n_parameters, self.device)
        if self.sweep.run.lanes != "auto":
            most = self.sweep.run.lanes
        return min(most, group.first.width) if group.first.width else most

    def _guess(self, group: _Group, lanes: int) -> float:
        cost = self.catalogue.guess(group.first, lanes, self.device)
        return pack_estimate(group.first, lanes, group.model, group.data, cost).seconds

    def _estimate(self, pack: Pack) -> Estimate:
        """The same object for packs of the same computation and size."""
        key = pack.key, len(pack.lanes)
        if key not in self.estimates:
            model = self.catalogue.model(pack.first.model, pack.first.data)
            cost = self.catalogue.cost(pack.first, len(pack.lanes), self.device)
            data = self.catalogue.data(pack.first.data)
            self.estimates[key] = pack_estimate(pack.first, len(pack.lanes), model, data, cost)
        found = self.estimates[key]
        if pack.first.width or not any("@" in lane.control for lane in pack.lanes):
            return found
        share = trained_share(pack.trials)  # kernels of a canonical width cost the same, however few lanes they train
        times = ("train", "measure", "evaluate")
        return replace(found, **{name: getattr(found, name) * share for name in times})


def auto_lanes(n_parameters: int, device: str) -> int:
    """How many lanes pay: on a CPU until weights and moments of a pack leave its caches, on a GPU until it is full."""
    limits = ((300_000, 256), (3_000_000, 32), (30_000_000, 8)) if device == "cuda" else ((300_000, 16), (1_500_000, 8))
    return next((lanes for most, lanes in limits if n_parameters <= most), 4)


def pack_id(trial_ids: Iterable[str]) -> str:
    """16 hex digits of a hash of the members, whatever their order."""
    return hashlib.sha256("\n".join(sorted(trial_ids)).encode()).hexdigest()[:16]


def _balanced(n: int, parts: int) -> Iterator[tuple[int, int]]:
    """n things in so many runs, as equal as can be."""
    start = 0
    for part in range(parts):
        stop = start + n // parts + (part < n % parts)
        yield start, stop
        start = stop


def _by_branch(lanes: Sequence[Lane]) -> list[Lane]:
    """Lanes that share the steps before an intervention side by side, so that packs hold them together."""
    groups: dict[tuple[Any, ...], list[Lane]] = {}
    for lane in lanes:
        groups.setdefault((lane.cell, lane.seed, lane.lr, lane.weight_decay), []).append(lane)
    return [lane for group in groups.values() for lane in group]


def _trial(first: Trial, lane: Lane) -> Trial:
    seeds = Seeds(**dict(zip(Seeds.model_fields, lane.seed, strict=True)))
    train = first.train
    if (train.lr, train.weight_decay) != (lane.lr, lane.weight_decay):
        train = train.model_copy(update={"lr": lane.lr, "weight_decay": lane.weight_decay})
    return first.model_copy(update={"seed": seeds, "train": train, "control": Control.model_validate(lane.control)})


def _some(values: Sequence[Any]) -> str:
    return ", ".join(str(v) for v in values[:8]) + (", …" if len(values) > 8 else "")
