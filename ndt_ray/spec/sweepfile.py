"""Sweep files: reading them, overriding them from the command line, and their JSON schema for editors."""

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.spec import CONTROL_NEEDS, Named
from ndt_ray.spec.axes import Sweep, make_sweep
from ndt_ray.spec.loader import MAX_BYTES, Document, dump_yaml, load_yaml, parse_value
from ndt_ray.spec.sections import PARTS, assigned, target

SUFFIXES = (".yaml", ".yml")
READS_FILES = ("arrays",)
"""Registered data sets whose parameters name a file."""


def packaged_sweeps() -> list[str]:
    """Names of the sweeps that come with the package, sorted."""
    files = resources.files("ndt_ray.sweeps").iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(SUFFIXES))


def load_sweep(name_or_path: str | Path) -> Sweep:
    """A sweep from a file, or from the name of one that comes with the package; SpecError with all that is wrong.

    Whatever ends in .yaml or holds a slash is a file. The file of a `checkpoint.plan` is looked for beside the sweep's.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(SUFFIXES) or "/" in text or "\\" in text:
        return parse_sweep(_read(Path(text)), origin=text, folder=Path(text).parent)
    names = packaged_sweeps()
    if text not in names:
        raise SpecError(f"no sweep is called '{text}'{did_you_mean(text, names)} (a file's name ends in .yaml)")
    file = resources.files("ndt_ray.sweeps") / f"{text}.yaml"
    with resources.as_file(file) as path:
        return parse_sweep(_read(path), origin=f"sweeps/{text}.yaml", folder=path.parent)


def parse_sweep(text: str, *, origin: str = "sweep", folder: Path | None = None) -> Sweep:
    """A sweep from YAML text; SpecError with `origin:line:column` of each thing wrong.

    Without a `folder`, as when the text came over a network, nothing in it may name a file: neither a checkpoint plan
    nor a user's own model.
    """
    document = load_yaml(text, origin)
    _inline_plans(document, folder)
    sweep = make_sweep(document.value, document)
    if folder is None:
        _refuse_files(sweep, origin)
    return sweep


def dump_sweep(sweep: Sweep) -> str:
    """The sweep as YAML text that reads back equal, without what is default."""
    return dump_yaml(json.loads(sweep.model_dump_json(exclude_defaults=True)))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{path}: larger than {MAX_BYTES:,} bytes: a sweep file is a page of text - is this one?")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such file - `ndt list sweeps` names those that come with it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as text ({error})") from None


def _refuse_files(sweep: Sweep, origin: str) -> None:
    named = [(part, sweep.base.get(part)) for part in ("model", "data")]
    for axis in sweep.axes:
        part = axis.path.partition(".")[0]
        if axis.path in ("model", "data", "model.name", "data.name"):
            named += [(part, value) for value in axis.points()]
    for part, value in named:
        name = value.get("name") if isinstance(value, dict) else value
        if isinstance(name, str) and (":" in name or name in READS_FILES):
            raise SpecError(f"{origin}: {part} '{name}' names a file, which only a sweep that is itself a file may do")


# -- checkpoint plans ------------------------------------------------------------------------------------------------


def _inline_plans(document: Document, folder: Path | None) -> None:
    """Replaces the file in every `checkpoint: {plan: FILE}` by its steps, so that trials depend on those alone."""
    places: list[tuple[tuple[str | int, ...], Any]] = []
    base, axes = document.value.get("base"), document.value.get("axes")
    if isinstance(base, dict):
        places.append((("base", "checkpoint", "plan"), base.get("checkpoint")))
    for i, axis in enumerate(axes if isinstance(axes, list) else []):
        if isinstance(axis, dict) and axis.get("path") == "checkpoint" and isinstance(axis.get("values"), list):
            places += [(("axes", i, "values", j, "plan"), value) for j, value in enumerate(axis["values"])]
    for path, section in places:
        if not isinstance(section, dict) or "plan" not in section:
            continue
        try:
            section["plan"] = _plan(section["plan"], folder)
        except SpecError as error:
            raise SpecError(f"{document.place(path)}: checkpoint.plan: {error}") from None


def _plan(value: Any, folder: Path | None) -> dict[str, list[int]]:
    if isinstance(value, dict):
        return checkpoint_plan(value, "plan")
    if not isinstance(value, str):
        raise SpecError(f"must be a file or a mapping, but got {value!r}")
    if folder is None:
        raise SpecError(f"'{value}' is a file, which only a sweep that is itself a file may name")
    return read_checkpoint_plan(folder / value)


def read_checkpoint_plan(path: Path) -> dict[str, list[int]]:
    """Steps by experiment (`{model}_{data}`) from a file in the founding study's format; SpecError if it is none.

    The format: {experiment: {"jumps": [...], "checkpoint_steps": [...]}}; only the steps are read.
    """
    try:
        value = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise SpecError(f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise SpecError(f"{path}: not a checkpoint plan (nested too deep)") from None
    return checkpoint_plan(value, str(path))


def checkpoint_plan(value: Any, origin: str) -> dict[str, list[int]]:
    """Ascending steps by experiment, from {experiment: {checkpoint_steps: [...]}} or {experiment: [...]}."""
    shape = 'must be {experiment: {"checkpoint_steps": [steps]}}'
    if not isinstance(value, dict) or not value:
        raise SpecError(f"{origin}: {shape}, but got {type(value).__name__}")
    plan: dict[str, list[int]] = {}
    for experiment, entry in value.items():
        steps = entry.get("checkpoint_steps") if isinstance(entry, dict) else entry
        if not isinstance(steps, list):
            raise SpecError(f"{origin}: {experiment}: {shape}, but there is no list of steps")
        wrong = [s for s in steps if isinstance(s, bool) or not isinstance(s, int) or s < 0]
        if wrong:
            raise SpecError(f"{origin}: {experiment}: a step is a whole number from 0 on, but got {wrong[0]!r}")
        plan[experiment] = sorted(set(steps))
    return plan


# -- overrides -------------------------------------------------------------------------------------------------------


def with_overrides(sweep: Sweep, assignments: Iterable[str] = (), where: Iterable[str] = ()) -> Sweep:
    """The sweep with `--set path=value` and `--where expression` applied; SpecError if it makes no sense.

    A value is YAML. Where an axis has the path, the value (or each of a list of them) becomes the axis's; else it goes
    into the base. `run.cpus=2`, `name=...` and `about=...` work too. Several expressions must all hold.
    """
    value: dict[str, Any] = json.loads(sweep.model_dump_json())
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign or not path.strip():
            raise SpecError(f"--set {assignment}: must be path=value, such as train.lr=1e-3")
        _set(value, path.strip(), parse_value(text.strip(), f"--set {path.strip()}"))
    filters = [w for w in ([sweep.where] if sweep.where else []) + list(where) if w.strip()]
    value["where"] = " and ".join(f"({w})" for w in filters) if len(filters) > 1 else "".join(filters) or None
    return make_sweep(value, Document({}, f"sweep {sweep.name} with --set and --where"))


def _set(value: dict[str, Any], path: str, given: Any) -> None:
    first, _, rest = path.partition(".")
    if path in ("name", "about"):
        value[path] = given
        return
    if first == "run" and rest:
        value["run"][rest] = given
        return
    where = target(path)
    axes = value["axes"]
    for axis in axes:
        if target(axis["path"]) == where:
            values = given if isinstance(given, list) else [given]
            axis.update(values=values, range=None, sample=None)
            return
    # In the base, but behind any axis that sets the whole of what this is a part of.
    if any(where[: len(target(axis["path"]))] == target(axis["path"]) for axis in axes):
        axes.append({"path": path, "role": "nuisance", "values": [given]})
    else:
        base, part = value["base"], where[0]
        base[part] = given if part == "engine" else assigned(part, base.get(part), where[1:], given)


# -- JSON schema -----------------------------------------------------------------------------------------------------


def sweep_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a sweep file, for editors: `# yaml-language-server: $schema=...`."""
    schema = Sweep.model_json_schema()
    definitions = schema["$defs"]
    parts = {}
    for part, model in PARTS.items():
        if part == "engine":
            parts[part] = model.model_json_schema()["properties"]["engine"]
            continue
        own = _partial(model, definitions)
        parts[part] = {"anyOf": [own, *_short_forms(part)]} if _short_forms(part) else own
    parts["checkpoint"]["properties"]["on_event"]["anyOf"].append({"type": "boolean"})
    schema["properties"]["base"] |= {"properties": parts, "additionalProperties": False}
    definitions["Named"] = {"anyOf": [_named(), {"type": "string"}]}
    definitions["Axis"]["oneOf"] = [{"required": [source]} for source in ("values", "range", "sample")]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _partial(model: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a section of which an axis may give the rest: nothing in it is required."""
    if model is Named:
        return _named()
    own = model.model_json_schema()
    for name, definition in own.pop("$defs", {}).items():
        definitions.setdefault(name, definition)
    own.pop("required", None)
    return own


def _named() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "a name, and parameters of its factory beside it or under `params`",
        "properties": {"name": {"type": "string"}, "params": {"type": "object"}},
        "required": ["name"],
        "additionalProperties": True,
    }


def _short_forms(part: str) -> list[dict[str, Any]]:
    if part == "seed":
        return [{"type": "integer", "minimum": 0, "description": "for all four sources of variation"}]
    if part == "control":
        parametrised = "|".join(kind for kind, needs in CONTROL_NEEDS.items() if needs)
        return [{"type": "string", "pattern": f"^(none|lr0|shuffled_labels|({parametrised}):.+)$"}]
    return [{"type": "string"}] if part in ("model", "data") else []
