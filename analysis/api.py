"""What an analysis is: a pure function of tables, declared with what it reads, writes and is partitioned by."""

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pandas as pd
import pyarrow as pa

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.spec.values import checked
from ndt_ray.store.schema import SCHEMA_VERSION, Table, register_table

if TYPE_CHECKING:
    from ndt_ray.analysis.mechanisms.context import ProbeContext

Per = Literal["trial", "checkpoint", "sweep"]
KEYS: Mapping[Per, tuple[str, ...]] = {"trial": ("trial_id",), "checkpoint": ("trial_id", "step"), "sweep": ()}
"""Columns that tell the partitions of an analysis apart."""

OF_SIBLINGS: Mapping[str, str] = {"sibling_measurements": "measurements", "sibling_velocity": "velocity"}
"""What an analysis per trial may read of others: rows of the trial's siblings (`control` reorder:BRANCH@STEP), with
the column `control` that says which, by the table that they come from."""

_NOT_CODE = (
    "ndt_ray.errors",
    "ndt_ray.registry",
    "ndt_ray.store",
    "ndt_ray.analysis.api",
    "ndt_ray.analysis.running.runner",
)
"""Modules that carry rows or messages, and decide no number: a change in them makes no result stale."""


@dataclass(frozen=True)
class Partition:
    """One unit of work: a trial, a checkpoint of a trial, or the whole sweep."""

    trial_id: str | None = None
    step: int | None = None

    def __str__(self) -> str:
        parts = [self.trial_id, None if self.step is None else f"step {self.step}"]
        return " ".join(p for p in parts if p is not None) or "sweep"

    @property
    def key(self) -> dict[str, str | int]:
        """Columns and their values, as rows of this partition carry them."""
        both = {"trial_id": self.trial_id, "step": self.step}
        return {k: v for k, v in both.items() if v is not None}


class Artifacts(Protocol):
    """Files an analysis makes beside its tables, named by what they are made from: `pool.SweepTables` has it."""

    def artifact(self, kind: str, key: str) -> tuple[str, bytes] | None:
        """(its path below the store's root, its bytes); None where nothing was kept."""

    def keep_artifact(self, kind: str, key: str, data: bytes) -> str:
        """Put it in its place, whole, instead of what is there; its path below the store's root."""


@dataclass(frozen=True)
class AnalysisInput:
    """What an analysis is given: the rows of its declared tables that belong to one partition."""

    sweep: str
    partition: Partition
    tables: Mapping[str, pa.Table]
    contexts: "Callable[[str, int], ProbeContext] | None" = None
    """(trial_id, step) -> the network there; only for analyses that are declared with `context`."""
    artifacts: Artifacts | None = None
    """What is too dear to make twice. Rows must not depend on whether it was found: a key says all it is made from."""
    notes: list[str] = field(default_factory=list)
    """What the person who runs it should know beside the rows; the run's report shows them."""

    def context(self, step: int | None = None, trial_id: str | None = None) -> "ProbeContext":
        """The network at a checkpoint, with its probe: this partition's unless told otherwise.

        Step 0 is there without a checkpoint. CheckpointError where the file is missing, corrupt or of another model.
        """
        if self.contexts is None:
            raise SpecError("this analysis was not declared with context=…, so it is given no network")
        trial_id = self.partition.trial_id if trial_id is None else trial_id
        step = self.partition.step if step is None else step
        if trial_id is None or step is None:
            raise SpecError(f"say which network: the partition '{self.partition}' leaves {trial_id=}, {step=}")
        return self.contexts(trial_id, step)

    def frame(self, table: str) -> pd.DataFrame:
        """One table as a DataFrame; empty, without columns, where the store has no such table yet."""
        if table not in self.tables:
            raise SpecError(f"table '{table}' was not declared in reads{did_you_mean(table, self.tables)}")
        return self.tables[table].to_pandas()


@dataclass(frozen=True)
class Analysis:
    """A registered analysis; calling it checks its parameters and the tables it returns."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[Table, ...]
    per: Per
    function: Callable[..., Mapping[str, pd.DataFrame]]
    context: tuple[str, ...] | None = None
    """Glob patterns of modules whose outputs it wants besides the tracked layers; None: it wants no network."""
    optional: tuple[str, ...] = ()
    """Of the tables it reads, those that no analysis is run for: they are read where they are."""
    layers: Callable[[Mapping[str, Any]], Iterable[str]] | None = None
    """Paths of layers that its parameters name: one that no network of the sweep has is refused beforehand."""
    defaults: Mapping[str, Any] = field(init=False)
    hints: Mapping[str, Any] = field(init=False)
    """Annotations of its parameters, where they can be told."""

    def __post_init__(self) -> None:
        if self.per not in KEYS:
            raise SpecError(f"analysis '{self.name}': per must be one of {', '.join(KEYS)}, but got {self.per!r}")
        if self.context is not None and not {"trials", "checkpoints"} <= set(self.reads):
            raise SpecError(f"analysis '{self.name}' wants a network: it must read the tables trials and checkpoints")
        keyword = [p for p in inspect.signature(self.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        object.__setattr__(self, "writes", tuple(register_table(t) for t in self.writes))
        object.__setattr__(self, "defaults", {p.name: p.default for p in keyword})
        object.__setattr__(self, "hints", _hints(self.function))
        object.__setattr__(self, "__doc__", self.function.__doc__)

    def __reduce__(self) -> tuple[Any, ...]:
        """By name where the name leads back here, so that a worker uses its own module; by value otherwise."""
        module, name = self.function.__module__, self.function.__qualname__
        if module.startswith("ndt_ray.") and _found(module, name) is self:
            return _found, (module, name)
        parts = (self.name, self.reads, self.writes, self.per, self.function, self.context, self.optional, self.layers)
        return Analysis, parts

    def parameters(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All parameters, defaults filled in; SpecError for one that is unknown, not of its type, or not plain JSON."""
        for name in given or {}:
            if name not in self.defaults:
                raise SpecError(f"analysis '{self.name}' has no parameter '{name}'{did_you_mean(name, self.defaults)}")
        merged = {**self.defaults, **(given or {})}
        try:
            json.dumps(merged, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SpecError(f"analysis '{self.name}': parameters must be plain JSON values: {error}") from error
        for name, value in (given or {}).items():
            checked(f"analysis '{self.name}': parameter '{name}'", self.hints.get(name, Any), value)
        return merged

    def __call__(self, data: AnalysisInput, **parameters: Any) -> dict[str, pa.Table]:
        """Run it on one partition; the tables have exactly the declared names, columns and types."""
        found = self.function(data, **self.parameters(parameters))
        declared = {t.name: t for t in self.writes}
        if set(found) != set(declared):
            raise SpecError(f"analysis '{self.name}' declares {sorted(declared)} but returned {sorted(found)}")
        return {name: conform(declared[name], frame) for name, frame in found.items()}

    def code_hash(self) -> str:
        """SHA-256 of its source and of every ndt_ray module it stands on; comments and layout do not count."""
        digest = hashlib.sha256(f"schema {SCHEMA_VERSION}\n".encode())
        source = inspect.getsourcefile(self.function)
        if source is None or not Path(source).is_file():
            digest.update(self.function.__code__.co_code + repr(self.function.__code__.co_consts).encode())
            return digest.hexdigest()
        _add_sources(digest, self.function.__module__, Path(source))
        return digest.hexdigest()

    def output_key(self, parameters: Mapping[str, Any], code: str, inputs: str) -> str:
        """16 hex digits that name an output: what was asked, of which code, on which inputs."""
        parts = [self.name, self.parameters(parameters), code, inputs]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def analysis(
    *,
    name: str,
    reads: tuple[str, ...],
    writes: tuple[Table, ...],
    per: Per,
    context: bool | Sequence[str] = False,
    optional: tuple[str, ...] = (),
    layers: Callable[[Mapping[str, Any]], Iterable[str]] | None = None,
) -> Callable[[Callable[..., Mapping[str, pd.DataFrame]]], Analysis]:
    """Declare a function `(AnalysisInput, *, parameters…) -> {table name: DataFrame}` an analysis.

    Keyword-only arguments are its parameters; each needs a default that JSON can hold. The function must depend on
    nothing else: no clock, no global state, randomness only from seeds among its inputs.

    `optional` tables are read besides, where the store has them: what writes them is not run for this one's sake.

    `layers` says which paths its parameters name. Where no network of the sweep has one of them, the run is refused
    with the closest; a network that lacks one which another has is the function's to leave out, with the reason.

    With `context` it is given networks too (`AnalysisInput.context`): the outputs of all tracked layers and attention
    patterns, and of the modules that match the glob patterns given instead of True. Per checkpoint, the
    initialisation is a partition as well, saved or not.
    """
    wanted = None if context is False else () if context is True else tuple(context)

    def declare(function: Callable[..., Mapping[str, pd.DataFrame]]) -> Analysis:
        return Analysis(name, (*reads, *optional), writes, per, function, wanted, optional, layers)

    return declare


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:  # names that only a type checker imports
        return {}


def conform(table: Table, frame: pd.DataFrame) -> pa.Table:
    """The frame as an Arrow table of exactly this schema, sorted by its key; SpecError names what differs."""
    wanted = [c.name for c in table.columns]
    if frame.empty and not len(frame.columns):
        return table.arrow().empty_table()
    missing, extra = [c for c in wanted if c not in frame], [c for c in frame if c not in wanted]
    if missing or extra:
        raise SpecError(f"rows for table '{table.name}' lack {missing} and have unknown {extra}")
    ordered = frame.sort_values(list(table.order), kind="stable")
    try:
        return pa.Table.from_pandas(ordered, schema=table.arrow(), preserve_index=False).replace_schema_metadata(
            table.arrow().metadata
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SpecError(f"rows for table '{table.name}' do not fit its types: {error}") from error


@functools.cache
def module_hash(module: str) -> str:
    """SHA-256 of a module's source and of every ndt_ray module it stands on; comments and layout do not count."""
    digest, source = hashlib.sha256(), inspect.getsourcefile(importlib.import_module(module))
    assert source is not None, module
    _add_sources(digest, module, Path(source))
    return digest.hexdigest()


def _add_sources(digest: "hashlib._Hash", module: str, path: Path) -> None:
    for name, text in sorted(_sources(module, path, {}).items()):
        digest.update(f"{name}\n{text}\n".encode())


def _found(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name, None)


def _sources(module: str, path: Path, seen: dict[str, str]) -> dict[str, str]:
    """Normalised source of a module and, following imports within ndt_ray, of what it stands on."""
    if module in (*seen, "ndt_ray.analysis") or module.startswith(_NOT_CODE):
        return seen
    seen[module], imported = _parsed(path, path.stat().st_mtime_ns)
    for name, origin in imported:
        _sources(name, origin, seen)
    return seen


@functools.cache
def _parsed(path: Path, changed_ns: int) -> tuple[str, tuple[tuple[str, Path], ...]]:
    """Normalised source of a file, and the ndt_ray modules that it imports with their files.

    Kept, for analyses stand on much the same: to parse anew for each of 57 took 19 s of one EPYC core.
    """
    tree = ast.parse(path.read_text())
    imported = []
    for name in _imported(tree):
        spec = importlib.util.find_spec(name) if name.startswith("ndt_ray.") and _exists(name) else None
        if spec is not None and spec.origin is not None:
            imported.append((name, Path(spec.origin)))
    return ast.unparse(tree), tuple(imported)


def _exists(name: str) -> bool:
    """Whether this is a module, and not a name inside one."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
