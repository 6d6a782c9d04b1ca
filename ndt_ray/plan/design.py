"""Which comparisons a sweep's axes make: levels of an axis, the unit that is replicated, and who shares batches."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ndt_ray.plan.power import Power, declared
from ndt_ray.spec import Named, Trial
from ndt_ray.spec.axes import Sweep, leaves_of, mentioned_parameters, shown
from ndt_ray.spec.axis import Role
from ndt_ray.spec.where import field

if TYPE_CHECKING:
    from ndt_ray.plan import Plan

SOURCES = ("init", "order", "dropout", "data")
"""Of variation between seeds, in the order of `Lane.seed`."""
_OF_LANES = ("train.lr", "train.weight_decay", "train")
"""Paths that lanes of one pack may differ in."""

SeedTuple = tuple[int, int, int, int]


@dataclass(frozen=True)
class Factor:
    """An axis that is no seed and no control: its path, its role, and the label of a trial's level."""

    path: str
    role: Role
    level: Callable[[Trial], str]


def factors(sweep: Sweep) -> tuple[Factor, ...]:
    """The sweep's axes, seeds and controls left out; axes zipped together each count as one."""
    parameters = mentioned_parameters(sweep)
    found = []
    for axis in sweep.axes:
        owner = axis.path.partition(".")[0]
        if owner in ("seed", "control"):
            continue
        if axis.path in ("model", "data"):
            keys = {k for v in axis.points() if isinstance(v, dict) for k in Named.model_validate(v).params}
            found.append(Factor(axis.path, axis.role, _named(axis.path, sorted(keys))))
            continue
        getters = [field(leaf, parameters)[1] for leaf in leaves_of(sweep, axis.path)]
        found.append(Factor(axis.path, axis.role, _joined(getters)))
    return tuple(found)


def unit_of(seeds: Iterable[SeedTuple]) -> int:
    """Place in `SOURCES` of what is replicated: the first source that varies; trials that agree in it are averaged."""
    given = list(seeds)
    return next((i for i in range(len(SOURCES)) if len({seed[i] for seed in given}) > 1), 0)


def batches_of(trial: Trial) -> tuple[Any, ...]:
    """What decides which samples a trial sees at which step: trials that agree in it see the same batches."""
    train, seed = trial.train, trial.seed
    return trial.data.model_dump_json(), train.batch, train.subset, seed.order, seed.data


def planned_power(plan: "Plan") -> list[Power]:
    """What the plan's seeds can show along each compare axis; parameters as the sweep gives them to `compare`."""
    chosen = [factor for factor in factors(plan.sweep) if factor.role == "compare"]
    units: dict[str, dict[str, set[SeedTuple]]] = {factor.path: {} for factor in chosen}
    seen: dict[str, dict[str, set[Any]]] = {factor.path: {} for factor in chosen}
    everything: set[SeedTuple] = set()
    for pack in plan.packs:
        lanes = [(i, lane) for i, lane in enumerate(pack.lanes) if lane.control == "none"]
        everything.update(lane.seed for _, lane in lanes)
        alike = batches_of(pack.first)[:-2]
        trials = pack.trials if any(factor.path in _OF_LANES for factor in chosen) else []
        for factor in chosen:
            common = factor.level(pack.first) if not trials else ""
            for i, lane in lanes:
                level = factor.level(trials[i]) if trials else common
                units[factor.path].setdefault(level, set()).add(lane.seed)
                seen[factor.path].setdefault(level, set()).add((*alike, lane.seed[1], lane.seed[3]))
    place = unit_of(everything)
    counted = {
        path: {level: len({seed[place] for seed in seeds}) for level, seeds in levels.items()}
        for path, levels in units.items()
    }
    compare = next((named.params for named in plan.sweep.analyses if named.name == "compare"), {})
    return declared(counted, lambda path: same_batches(list(seen[path].values())), compare)


def same_batches(levels: Sequence[set[Any]]) -> bool:
    """Whether all levels see the same batches."""
    return len(levels) > 1 and all(level == levels[0] for level in levels)


def _named(owner: str, keys: Sequence[str]) -> Callable[[Trial], str]:
    def level(trial: Trial) -> str:
        value: Named = getattr(trial, owner)
        given = ",".join(f"{key}={shown(value.params[key])}" for key in keys if key in value.params)
        return f"{value.name}({given})" if given else value.name

    return level


def _joined(getters: Sequence[Callable[[Trial], Any]]) -> Callable[[Trial], str]:
    def level(trial: Trial) -> str:
        return " ".join(shown(get(trial)) for get in getters)

    return level
