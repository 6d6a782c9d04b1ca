"""The sections of a trial as a sweep file writes them: which paths there are, and how values are put at them."""

from typing import Any, Literal, cast

from pydantic import BaseModel

from ndt_ray.errors import SpecError
from ndt_ray.spec import Checkpoint, Control, Evaluate, Measure, Named, Seeds, Strict, Train
from ndt_ray.spec.where import LEAVES, SECTIONS, closest_path


class _Engine(Strict):
    engine: Literal["auto", "loop", "stack"] = "auto"


PARTS: dict[str, type[BaseModel]] = {
    "model": Named,
    "data": Named,
    "train": Train,
    "measure": Measure,
    "evaluate": Evaluate,
    "checkpoint": Checkpoint,
    "seed": Seeds,
    "control": Control,
    "engine": _Engine,
}
FILLED_IN = ("width", "source", "trial_id")
_SETTABLE = [*PARTS, *SECTIONS, *(p for p in LEAVES if p not in FILLED_IN)]


def target(path: str) -> tuple[str, ...]:
    """Where a path of a sweep file points in a trial: `model.width` is ("model", "params", "width").

    SpecError with the closest path where there is none.
    """
    owner, _, rest = path.partition(".")
    if owner in ("model", "data") and rest and rest != "name":
        parameter = rest.removeprefix("params.")
        if parameter and parameter != "params" and "." not in parameter:
            return (owner, "params", parameter)
    elif path in _SETTABLE:
        return tuple(path.split("."))
    if owner in FILLED_IN:
        raise SpecError(f"'{path}' is filled in by the plan and cannot be set")
    raise SpecError(f"unknown path '{path}'{closest_path(path, _SETTABLE)}")


def long_form(part: str, value: Any) -> dict[str, Any]:
    """The long form of a section that has a short one, so that something can be set inside it."""
    if part in ("model", "data"):
        if isinstance(value, dict):
            own = {k: v for k, v in value.items() if k not in ("name", "params")}
            nested = value.get("params") or {}
            return {"name": value.get("name"), "params": {**nested, **own} if isinstance(nested, dict) else nested}
        return {"name": value, "params": {}}
    if part == "seed" and isinstance(value, int):
        return dict.fromkeys(Seeds.model_fields, value)
    return value if isinstance(value, dict) else {}


def assigned(part: str, value: Any, rest: tuple[str, ...], given: Any) -> Any:
    """`value` with `given` at `rest`; whole sections merge into the base, models, data sets and seeds replace it."""
    if part == "engine":
        return {"engine": given}
    if not rest:
        merges = part in SECTIONS and isinstance(given, dict) and isinstance(value, dict)
        return merge(value, given) if merges else given
    value = long_form(part, value)
    inner = value
    for step in rest[:-1]:
        inner[step] = inner[step] if isinstance(inner.get(step), dict) else {}
        inner = inner[step]
    last = inner.get(rest[-1])
    both = isinstance(last, dict) and isinstance(given, dict)
    inner[rest[-1]] = merge(cast(dict[str, Any], last), given) if both else given
    return value


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with what `above` says on top, mappings inside it too; a checkpoint plan is one value."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "plan"
        merged[key] = merge(merged[key], value) if both else value
    return merged


def with_planned_steps(checkpoint: dict[str, Any], experiment: str) -> dict[str, Any]:
    """A checkpoint section with its `plan` turned into steps: those of the experiment `{model}_{data}`, if any."""
    plan = checkpoint["plan"]
    if not isinstance(plan, dict):
        raise SpecError(f"plan: a file is read where the sweep is loaded from a file, but got {plan!r}")
    own = {k: v for k, v in checkpoint.items() if k != "plan"}
    steps = plan.get(experiment, [])
    if not steps or not isinstance(own.get("at", []), list):
        return own
    return {**own, "at": [*own.get("at", []), *steps]}
