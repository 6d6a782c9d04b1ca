"""The reference pages, written from the code: `python tools/gen_docs.py [--check]`.

`docs/tables.md` from the table schemas, `docs/spec.md` from the pydantic models of a sweep, `docs/cli.md` from the
command line, `docs/names.md` from the registry. With `--check` nothing is written; pages that differ are named and the
exit code is 1.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Written by tools/gen_docs.py: change the code it names, then run `make docs`. -->"


def cell(text: object) -> str:
    """Text that cannot break a row of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def rows(header: tuple[str, ...], body: list[tuple[object, ...]]) -> list[str]:
    lines = [header, tuple("---" for _ in header), *body]
    return ["| " + " | ".join(cell(c) for c in line) + " |" for line in lines]


# ------------------------------------------------------------------------------------------------------- tables


def tables() -> str:
    """Every table of the store, from `ndt_ray/store/schema.py` and what the analyses declare."""
    from ndt_ray import registry
    from ndt_ray.store.schema import COMPUTED, SCHEMA_VERSION, TABLES

    for name in registry.names("analysis"):
        registry.resolve("analysis", name)  # registers its tables
    everything = {**TABLES, **COMPUTED}
    lines = [
        "# Tables",
        "",
        NOTE,
        "",
        f"Schema version {SCHEMA_VERSION}. Every table is also partitioned by `sweep`. A column of type `measure` is",
        "`float32`, or `float64` in series imported from elsewhere. Steps count optimizer updates: 0 is the",
        "initialisation, and it is measured. The view `wide` joins `measurements` with `trials` and `scalars`.",
        "",
        *(f"- [`{t.name}`](#{t.name}): {t.doc}" for t in everything.values()),
    ]
    for table in everything.values():
        body: list[tuple[object, ...]] = [(f"`{c.name}`", c.type, c.unit, c.doc) for c in table.columns]
        key = ", ".join(f"`{name}`" for name in table.order)
        lines += ["", f"## {table.name}", "", table.doc + f" Key and sort order: {key}.", ""]
        lines += rows(("column", "type", "unit", "meaning"), body)
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------------------------------------- spec


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def schema_type(schema: dict[str, Any]) -> str:
    """A JSON schema's type in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{v}`" for v in schema["enum"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(schema_type(s) for s in schema[union]))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        if "prefixItems" in schema:
            return "[" + ", ".join(schema_type(s) for s in schema["prefixItems"]) + "]"
        return "list of " + schema_type(schema.get("items", {}))
    if kind == "object":
        return "mapping"
    words = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = [f"{sign} {str(schema[key]).replace(str(2**63), '2^63')}" for key, sign in words.items() if key in schema]
    return kind + (f" {', '.join(limits)}" if limits else "")


def default(field: Any) -> str:
    if field.is_required():
        return "*required*"
    value = field.default
    if value is PydanticUndefined:
        value = None if field.default_factory_takes_validated_data else field.default_factory()
    if isinstance(value, BaseModel):
        return "its defaults"
    return "" if value in (None, (), {}, "") else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def spec() -> str:
    """The fields of a sweep file, from `ndt_ray/spec/axes.py` and `ndt_ray/spec/__init__.py`."""
    from ndt_ray.spec import Trial, axes

    found: dict[str, type[BaseModel]] = {}
    queue: list[type[BaseModel]] = [axes.Sweep, Trial]
    while queue:
        model = queue.pop(0)
        if model.__name__ not in found:
            found[model.__name__] = model
            for field in model.model_fields.values():
                queue += models_in(field.annotation)
    lines = [
        "# The spec",
        "",
        NOTE,
        "",
        "A sweep file is YAML: the fields of [Sweep](#sweep), whose `base` holds those of [Trial](#trial). Unknown",
        "keys, doubled keys and unknown names are errors that say where. Numbers are YAML 1.2's, so `3e-4` is a",
        "number; only `true` and `false` are booleans.",
        "",
        "An editor with a YAML language server (VS Code's YAML extension and others) completes and checks a sweep file",
        "that begins with `# yaml-language-server: $schema=sweep.schema.json`, after `ndt show schema >",
        "sweep.schema.json` beside it.",
    ]
    for model in found.values():
        schema = model.model_json_schema(by_alias=False)
        own = schema.get("properties", {})
        doc = (model.__doc__ or "").strip()
        body: list[tuple[object, ...]] = []
        for name, field in model.model_fields.items():
            given = {k: v for k, v in own.get(name, {}).items() if k not in ("title", "description", "default")}
            body.append((f"`{name}`", schema_type(given), default(field), field.description or ""))
        files = {name: own[name] for name in own if name not in model.model_fields}  # said in files, no part of a trial
        body += [(f"`{name}`", schema_type(each), "", each["description"]) for name, each in files.items()]
        lines += ["", f"## {model.__name__}", ""]
        lines += [doc, ""] if doc and not doc.startswith("!!!") and doc != (BaseModel.__doc__ or "").strip() else []
        lines += rows(("field", "type", "default", "meaning"), body)
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------ names and cli


def names() -> str:
    """What may be named in a sweep file, from `ndt_ray/registry.py`: architectures, data sets, measures, analyses."""
    from ndt_ray import registry

    title = {"model": "Architectures", "data": "Data sets", "measure": "Measures", "analysis": "Analyses"}
    lines = [
        "# Names",
        "",
        NOTE,
        "",
        "What a sweep file may call by name; `ndt list models`, and its like, print the same.",
    ]
    for kind in registry.kinds():
        body: list[tuple[object, ...]] = [
            (f"`{name}`", registry.summary(kind, name))  # type: ignore[arg-type]
            for name in registry.names(kind)  # type: ignore[arg-type]
        ]
        lines += ["", f"## {title.get(kind, kind)}", "", *rows(("name", "what it is"), body)]
    return "\n".join(lines) + "\n"


def cli() -> str:
    """Every command with its arguments and options, from `ndt_ray/cli`."""
    import typer

    from ndt_ray import cli as package

    command: Any = typer.main.get_command(package.app())
    lines = ["# The command line", "", NOTE, "", "`ndt COMMAND --help` prints the same.", ""]
    lines += ["Exit codes: 0 done, 1 some trials failed, 2 bad spec or usage, 3 store, 4 cluster, 130 interrupted."]
    for path, sub in commands(command, ("ndt",)):
        lines += ["", f"## {' '.join(path)}", "", (sub.help or "").strip() or sub.get_short_help_str(200), ""]
        context = sub.context_class(sub, info_name=" ".join(path))
        lines += ["```", " ".join([" ".join(path), *sub.collect_usage_pieces(context)]), "```"]
        body: list[tuple[object, ...]] = []
        for parameter in sub.params:
            if getattr(parameter, "hidden", False) or parameter.name == "help":
                continue
            label = ", ".join(parameter.opts + parameter.secondary_opts)
            if parameter.param_type_name == "argument":
                label = (parameter.metavar or str(parameter.name).upper()).strip("[].")
            value = (
                "" if parameter.default in (None, False, (), []) or callable(parameter.default) else parameter.default
            )
            body.append((f"`{label}`", getattr(parameter, "help", None) or "", f"`{value}`" if value != "" else ""))
        if body:
            lines += ["", *rows(("option", "meaning", "default"), body)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The commands below a group, depth first, hidden ones left out."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, sub in inner.items():
        if not sub.hidden:
            yield from commands(sub, (*path, name))


# ------------------------------------------------------------------------------------------------------- writing


def pages() -> dict[Path, str]:
    """Every generated page with the text it should have."""
    made = {"tables.md": tables(), "spec.md": spec(), "names.md": names(), "cli.md": cli()}
    return {ROOT / "docs" / name: text for name, text in made.items()}


def main(arguments: list[str]) -> int:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what the code says: run `make docs` and commit it", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages()[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
