"""A sweep: a base trial, the axes along which it varies, and the grid of trials that follows.

The grid is the product of the axes, in their order, the last one fastest; axes named together in `zip` advance as one.
Nothing here is expanded before it is asked for: a grid of a million trials is a generator.
"""

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.spec import Named, Strict, Trial
from ndt_ray.spec.axis import Axis
from ndt_ray.spec.loader import Document, Path, Problem, refuse, validated
from ndt_ray.spec.sections import FILLED_IN, PARTS, assigned, long_form, target, with_planned_steps
from ndt_ray.spec.where import LEAVES, SECTIONS, Where, equal, field

NAME = re.compile(r"^(?!.*\.$)[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
RESERVED = {"con", "prn", "aux", "nul", *(f"{p}{n}" for p in ("com", "lpt") for n in range(1, 10))}
CHECKED_VALUES = 200
"""Values of an axis that are checked when the sweep is read; those of a longer axis when their trial is made."""
CACHED_SECTIONS = 4096


class Run(Strict):
    """What the trials run on; no part of what they are."""

    lanes: Literal["auto"] | Annotated[int, Field(gt=0)] = Field(default="auto", description="trials trained together")
    cpus: float = Field(default=1, gt=0, description="CPUs a pack")
    gpus: float = Field(default=0, ge=0, description="GPUs a pack; fractions share one")
    retries: int = Field(default=3, ge=0, description="times that a pack is tried again")


class Sweep(Strict):
    """A grid of trials, how to run it and what to make of it: one YAML file."""

    name: str = Field(description="of the sweep: letters, digits, and _ . - inside")
    about: str = Field(default="", description="the question it asks")
    base: dict[str, Any] = Field(description="what every trial has in common")
    axes: tuple[Axis, ...] = Field(default=(), description="what varies; the grid is their product")
    zip: tuple[tuple[str, ...], ...] = Field(default=(), description="paths of axes that advance together")
    exclude: tuple[dict[str, Any], ...] = Field(default=(), description="partial matches; a list matches any of it")
    where: str | None = Field(default=None, description="only trials for which this holds")
    run: Run = Run()
    analyses: tuple[Named, ...] = Field(default=(), description="run on the finished sweep")

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, value: str) -> str:
        if not NAME.match(value) or value.partition(".")[0].lower() in RESERVED:
            raise ValueError(
                f"must be usable as a file name (up to 64 letters, digits, and _ . - inside), but got {value!r}"
            )
        return value

    def trials(self) -> Iterator[Trial]:
        """The trials of the grid in order, one at a time, `exclude` and `where` applied; SpecError at a bad value.

        A `where` that reads what the plan fills in (`trial_id`) is left to the plan.
        """
        return Grid(self).trials()


def make_sweep(value: Any, document: Document | None = None) -> Sweep:
    """A checked sweep from a mapping as YAML gives it; one SpecError that lists all that is wrong and where."""
    document = document or Document({}, "sweep")
    sweep, problems = validated(Sweep, value)
    refuse(problems, document)
    assert sweep is not None
    refuse(find_problems(sweep), document)
    return sweep


def mentioned_parameters(sweep: Sweep) -> dict[str, set[str]]:
    """Parameters of models and data sets that a sweep names: {"model": {"width"}, "data": set()}."""
    found: dict[str, set[str]] = {"model": set(), "data": set()}
    for owner, name, parameter in [*_in_value(sweep.base), *_in_axes(sweep)]:
        found[owner].add(parameter)
        del name
    return found


def _in_value(value: dict[str, Any]) -> Iterator[tuple[str, str | None, str]]:
    for owner in ("model", "data"):
        if isinstance(value.get(owner), dict):
            nested = value[owner].get("params")
            parameters = {**value[owner], **(nested if isinstance(nested, dict) else {})}
            for parameter in parameters.keys() - {"name", "params"}:
                yield owner, value[owner].get("name"), parameter


def _in_axes(sweep: Sweep) -> Iterator[tuple[str, str | None, str]]:
    for axis in sweep.axes:
        where = target(axis.path)
        if where[0] in ("model", "data") and where[1:2] == ("params",):
            yield where[0], None, where[2]
        elif len(where) == 1 and where[0] in ("model", "data"):
            for value in axis.points():
                yield from _in_value({where[0]: value})


# -- the grid --------------------------------------------------------------------------------------------------------


class Grid:
    """The product of a sweep's axes. Sections of a trial (`train`, `measure`, ...) are made once for each combination
    of the axes that touch them, and shared by all trials that have it."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.targets = [target(axis.path) for axis in sweep.axes]
        self.points = [axis.points() for axis in sweep.axes]
        paths = [axis.path for axis in sweep.axes]
        group_of = {paths.index(path): g for g, group in enumerate(sweep.zip) for path in group if path in paths}
        self.dimensions: list[list[int]] = []
        placed: dict[int, list[int]] = {}
        for i in range(len(paths)):
            if i in group_of and group_of[i] in placed:
                placed[group_of[i]].append(i)
                continue
            self.dimensions.append([i])
            if i in group_of:
                placed[group_of[i]] = self.dimensions[-1]
        self._dimension = {axis: d for d, axes in enumerate(self.dimensions) for axis in axes}
        # `model` before `model.width`, whatever their order in the file.
        order = sorted(range(len(paths)), key=lambda i: len(self.targets[i]))
        self._axes = {part: [i for i in order if self.targets[i][0] == part] for part in PARTS}
        self._reads = {part: sorted({self._dimension[i] for i in self._axes[part]}) for part in PARTS}
        if self._has_plan():
            named = (self._reads[part] for part in ("model", "data", "checkpoint"))
            self._reads["checkpoint"] = sorted(set(itertools.chain(*named)))
        self._made: dict[tuple[str, tuple[int, ...]], Any] = {}

    @property
    def size(self) -> int:
        """Points of the grid before `exclude` and `where`."""
        return math.prod(len(self.points[axes[0]]) for axes in self.dimensions)

    def trials(self) -> Iterator[Trial]:
        """See `Sweep.trials`."""
        keep = TrialFilter(self.sweep)
        for point in self.product():
            trial = self.trial(point)
            if keep(trial):
                yield trial

    def product(self) -> Iterator[tuple[int, ...]]:
        """An index into each dimension, the last one fastest."""
        return _product([len(self.points[axes[0]]) for axes in self.dimensions])

    def trial(self, point: tuple[int, ...]) -> Trial:
        """The trial at a point, its engine and defaults of its factories not yet resolved."""
        parts = {part: self._part(part, tuple(point[d] for d in self._reads[part])) for part in PARTS}
        parts["engine"] = parts["engine"].engine
        return Trial.model_construct(width=0, source=None, **parts)

    def part_problems(self, part: str, point: tuple[int, ...]) -> tuple[Any, list[Problem]]:
        """One section at a point, or what is wrong with it, told at the place in the sweep file that said it."""
        try:
            raw = self._raw(part, point)
        except SpecError as error:
            return None, [Problem(("base", part), str(error))]
        made, problems = validated(PARTS[part], raw)
        prefix: Path = () if part == "engine" else (part,)
        return made, [Problem(self._origin((*prefix, *p.path), point), p.message) for p in problems]

    def _part(self, part: str, indexes: tuple[int, ...]) -> Any:
        key = (part, indexes)
        if key not in self._made:
            point = [0] * len(self.dimensions)
            for dimension, index in zip(self._reads[part], indexes, strict=True):
                point[dimension] = index
            made, problems = self.part_problems(part, tuple(point))
            refuse(problems, Document({}, f"sweep {self.sweep.name}"))
            if len(self._made) >= CACHED_SECTIONS:
                self._made.clear()
            self._made[key] = made
        return self._made[key]

    def _raw(self, part: str, point: tuple[int, ...]) -> Any:
        value = copy.deepcopy(self.sweep.base.get(part, None if part in ("model", "data") else {}))
        value = {"engine": value} if part == "engine" and value else value
        for i in self._axes[part]:
            given = copy.deepcopy(self.points[i][point[self._dimension[i]]])
            value = assigned(part, value, self.targets[i][1:], given)
        if value is None:
            raise SpecError("missing: say it here or make it an axis")
        if part == "checkpoint" and isinstance(value, dict) and "plan" in value:
            names = [long_form(p, self._raw(p, point))["name"] for p in ("model", "data")]
            value = with_planned_steps(value, "_".join(names))
        return value

    def _has_plan(self) -> bool:
        given = [self.sweep.base.get("checkpoint")]
        given += [v for i in self._axes["checkpoint"] for v in self.points[i][:CHECKED_VALUES]]
        return any(isinstance(v, dict) and "plan" in v for v in given)

    def _origin(self, path: Path, point: tuple[int, ...]) -> Path:
        for i, where in enumerate(self.targets):
            if path[: len(where)] == where or where == path[: len(where)] or where[: len(path)] == path:
                listed = self.sweep.axes[i].values is not None
                tail: Path = ("values", point[self._dimension[i]]) if listed else ()
                return ("axes", i, *tail, *(path[len(where) :] if listed else ()))
        return ("base", *path)


def _product(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """`itertools.product` of ranges without a tuple of each."""
    if not lengths:
        yield ()
        return
    for head in _product(lengths[:-1]):
        for index in range(lengths[-1]):
            yield (*head, index)


# -- filters ---------------------------------------------------------------------------------------------------------


class TrialFilter:
    """Whether a trial is neither excluded nor filtered out, as far as that can be said before the plan.

    `hits[i]` counts the trials that `exclude[i]` matched.
    """

    def __init__(self, sweep: Sweep) -> None:
        parameters = mentioned_parameters(sweep)
        self.excluded = [exclusion(entry, parameters) for entry in sweep.exclude]
        self.hits = [0] * len(self.excluded)
        where = Where(sweep.where, parameters) if sweep.where else None
        self.where = where if where is not None and not where.needs_resolved else None

    def __call__(self, trial: Trial) -> bool:
        out = False
        for i, matches in enumerate(self.excluded):
            if matches(trial):
                self.hits[i] += 1
                out = True
        return not out and (self.where is None or self.where(trial))


def resolved_filter(sweep: Sweep) -> Callable[[Trial], bool] | None:
    """What is left of `where` for the plan: the part that reads what it resolves, or None."""
    where = Where(sweep.where, mentioned_parameters(sweep)) if sweep.where else None
    return where if where is not None and where.needs_resolved else None


def exclusion(entry: dict[str, Any], parameters: dict[str, set[str]]) -> Callable[[Trial], bool]:
    """Whether a trial matches all of a partial match; a list of values matches each of them."""
    readers = [(field(name, parameters)[1], v if isinstance(v, list) else [v]) for name, v in entry.items()]

    def matches(trial: Trial) -> bool:
        return all(any(equal(get(trial), wanted) for wanted in values) for get, values in readers)

    return matches


# -- what is wrong with a sweep --------------------------------------------------------------------------------------


def find_problems(sweep: Sweep) -> list[Problem]:
    """All that can be said to be wrong with a sweep without knowing any model or data set."""
    problems = _base_problems(sweep) + _axis_problems(sweep)
    if problems:
        return problems
    problems = _zip_problems(sweep)
    if problems:
        return problems
    return _section_problems(Grid(sweep)) + _filter_problems(sweep)


def _base_problems(sweep: Sweep) -> list[Problem]:
    problems = []
    for key in sweep.base:
        if key in FILLED_IN:
            problems.append(Problem(("base", key), "is filled in by the plan and cannot be set"))
        elif key not in PARTS:
            problems.append(Problem(("base", key), f"unknown key{did_you_mean(key, PARTS)}"))
    return problems


def _axis_problems(sweep: Sweep) -> list[Problem]:
    problems: list[Problem] = []
    first: dict[tuple[str, ...], int] = {}
    for i, axis in enumerate(sweep.axes):
        try:
            where = target(axis.path)
        except SpecError as error:
            problems.append(Problem(("axes", i, "path"), str(error)))
            continue
        if where in first:
            problems.append(Problem(("axes", i, "path"), f"'{axis.path}' is already axis {first[where]}: join them"))
        first.setdefault(where, i)
        try:
            axis.points()
        except SpecError as error:
            problems.append(Problem(("axes", i), str(error)))
    return problems


def _zip_problems(sweep: Sweep) -> list[Problem]:
    problems: list[Problem] = []
    lengths = {axis.path: len(axis.points()) for axis in sweep.axes}
    seen: set[str] = set()
    for g, group in enumerate(sweep.zip):
        for i, path in enumerate(group):
            if path not in lengths:
                problems.append(Problem(("zip", g, i), f"no axis has the path '{path}'{did_you_mean(path, lengths)}"))
            elif path in seen:
                problems.append(Problem(("zip", g, i), f"'{path}' is already zipped: name it once"))
            seen.add(path)
        found = {path: lengths[path] for path in group if path in lengths}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{path} has {n}" for path, n in found.items())
            problems.append(Problem(("zip", g), f"zipped axes need as many values each, but {told}"))
    return problems


def _section_problems(grid: Grid) -> list[Problem]:
    """Each section with the first values of its axes, then with each other value in turn."""
    problems: list[Problem] = []
    for part in PARTS:
        dimensions = sorted({grid._dimension[i] for i in grid._axes[part]})
        points = [[0] * len(grid.dimensions)]
        for dimension in dimensions:
            for index in range(1, min(len(grid.points[grid.dimensions[dimension][0]]), CHECKED_VALUES)):
                points.append([index if d == dimension else 0 for d in range(len(grid.dimensions))])
        for point in points:
            problems += grid.part_problems(part, tuple(point))[1]
    return list(dict.fromkeys(problems))


def _filter_problems(sweep: Sweep) -> list[Problem]:
    problems: list[Problem] = []
    parameters = mentioned_parameters(sweep)
    for i, entry in enumerate(sweep.exclude):
        if not entry:
            problems.append(Problem(("exclude", i), "an empty match excludes every trial: name a field"))
        for name in entry:
            try:
                path, _ = field(name, parameters)
            except SpecError as error:
                problems.append(Problem(("exclude", i, name), str(error)))
                continue
            if path in (*FILLED_IN, "engine"):
                problems.append(Problem(("exclude", i, name), "is known to the plan only: use where"))
    if sweep.where is not None:
        try:
            Where(sweep.where, parameters)
        except SpecError as error:
            problems.append(Problem(("where",), str(error).removeprefix("where: ")))
    return problems


# -- names of cells --------------------------------------------------------------------------------------------------


def cell_namer(sweep: Sweep) -> Callable[[Trial], str]:
    """What names a trial's cell: `vit(depth=4)/mnist lr=0.01`, everything that varies but seeds and controls.

    A cell's name depends on the sweep's axes, but not on how many values they have: extending one renames nothing.
    """
    inside = {(owner, name, parameter) for owner, name, parameter in _in_axes(sweep)}
    whole = [a.path for a in sweep.axes if target(a.path)[0] not in ("model", "data", "seed", "control")]
    paths = [leaf for path in whole for leaf in leaves_of(sweep, path)]
    ends = [path.rpartition(".")[2] for path in paths]
    pieces = [(end if ends.count(end) == 1 else path, field(path)[1]) for path, end in zip(paths, ends, strict=True)]

    def named(owner: str, value: Named) -> str:
        keys = sorted({p for o, name, p in inside if o == owner and name in (None, value.name) and p in value.params})
        return value.name + (f"({','.join(f'{k}={shown(value.params[k])}' for k in keys)})" if keys else "")

    def cell(trial: Trial) -> str:
        pairs = [f"{end}={shown(get(trial))}" for end, get in pieces]
        return " ".join([f"{named('model', trial.model)}/{named('data', trial.data)}", *pairs])

    return cell


def leaves_of(sweep: Sweep, path: str) -> list[str]:
    """The fields that an axis sets: itself, or those that its values mention where it sets a whole section."""
    if path not in SECTIONS:
        return [path]
    axis = next(a for a in sweep.axes if a.path == path)
    keys = dict.fromkeys(key for value in axis.points() if isinstance(value, dict) for key in value)
    return [f"{path}.{key}" for key in keys if f"{path}.{key}" in LEAVES]


def shown(value: Any) -> str:
    """A value as it stands in a cell's name."""
    if isinstance(value, float):
        return f"{value:g}"
    return "+".join(shown(v) for v in value) if isinstance(value, list | tuple) else str(value)
