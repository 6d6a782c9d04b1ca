"""Strict YAML, and what is wrong with a document as one error that says where.

PyYAML reads `3e-4` as a string, `on` as true, `010` as eight, and lets the second of two equal keys win. Here numbers
are YAML 1.2's (a whole number may be written `2e3`), only `true` and `false` are booleans, and equal keys are refused.
"""

import json
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from ndt_ray.errors import SpecError, did_you_mean

MAX_BYTES = 1_000_000
MAX_NODES = 200_000
"""Nodes after aliases are expanded: a few lines of nested aliases can name billions."""
MAX_DEPTH = 50
MAX_LISTED = 20

Path = tuple[str | int, ...]
Mark = tuple[int, int]
M = TypeVar("M", bound=BaseModel)

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_HEX = re.compile(r"^0x[0-9a-fA-F]+$")
_FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
_UNREADABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NOT_FINITE = re.compile(r"^[-+]?\.(?:inf|Inf|INF|nan|NaN|NAN)$")


class _Loader(yaml.SafeLoader):
    """SafeLoader without its readings of plain scalars: those are ours."""

    yaml_implicit_resolvers: dict[str, Any] = {}


for _tag, _pattern, _first in (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("int", _HEX, ["0"]),
    ("float", _FLOAT, list("-+.0123456789")),
    ("float", _NOT_FINITE, list("-+.")),
    ("merge", re.compile(r"^<<$"), ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


@dataclass(frozen=True)
class Document:
    """What a file says, and where it says it: `marks` holds line and column (from 1) of every path."""

    value: dict[str, Any]
    origin: str
    marks: Mapping[Path, Mark] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """`file:line:column` of a path, or of the nearest thing around it that the file holds."""
        for n in range(len(path), -1, -1):
            if path[:n] in self.marks:
                line, column = self.marks[path[:n]]
                return f"{self.origin}:{line}:{column}"
        return self.origin


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document: where (a path into it), and what."""

    path: Path
    message: str


def parse_number(text: str) -> int | float | None:
    """The number that a plain scalar says, None if it says none: `3e-4`, `1_000`, `0x1f`; `2e3` is the integer 2000."""
    if _HEX.match(text):
        return int(text, 16)
    if _INT.match(text):
        return int(text.replace("_", ""))
    if not _FLOAT.match(text):
        return None
    value = float(text.replace("_", ""))
    whole = "." not in text and abs(value) < 2**53 and value.is_integer()
    return int(value) if whole else value


def parse_scalar(text: str) -> Any:
    """What a plain scalar says: null, a boolean, a number, or itself."""
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    number = parse_number(text)
    return text if number is None else number


def load_yaml(text: str, origin: str) -> Document:
    """A mapping from YAML text; SpecError with `origin:line:column` for whatever is wrong with it.

    Refused beside bad syntax: equal keys, keys that are not text, tags, numbers that are not finite, text of more than
    1 MB, more than 200,000 values once aliases are followed, aliases inside themselves, and two documents in one file.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise SpecError(f"{origin}: larger than {MAX_BYTES:,} bytes: a sweep file is a page of text - is this one?")
    loader = _Loader(_readable(text, origin))
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{origin}:{mark.line + 1}:{mark.column + 1}" if mark else origin
        told = " ".join(part for part in (error.context, error.problem) if part)
        hint = " - indent with spaces" if "'\\t'" in told else ""
        raise SpecError(f"{place}: {told}{hint}") from None
    except RecursionError:
        raise SpecError(f"{origin}: nested more than {MAX_DEPTH} deep") from None
    finally:
        loader.dispose()
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(f"{origin}: must be a mapping (key: value), but got {_kind(node)}")
    _count(node, origin, {}, 0)
    marks: dict[Path, Mark] = {}
    value = _construct(node, (), marks, origin)
    return Document(value, origin, marks)


def parse_value(text: str, origin: str) -> Any:
    """One YAML value, as `--set path=value` gives it; SpecError names `origin`."""
    try:
        return load_yaml(f"value: {text}" if text.strip() else "value: ''", origin).value["value"]
    except SpecError as error:
        told = str(error).removeprefix(origin).lstrip(":")
        raise SpecError(f"{origin}: not a YAML value: {text!r} ({told})") from None


def _readable(text: str, origin: str) -> str:
    found = _UNREADABLE.search(text)
    if found:
        line, column = text.count("\n", 0, found.start()) + 1, found.start() - text.rfind("\n", 0, found.start())
        raise SpecError(f"{origin}:{line}:{column}: a character that is no text ({found.group()!r})")
    return text


def _kind(node: yaml.Node | None) -> str:
    if node is None:
        return "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "one value"


def _place(node: yaml.Node, origin: str) -> str:
    return f"{origin}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _count(node: yaml.Node, origin: str, sizes: dict[int, int], depth: int) -> int:
    """Nodes below `node` with aliases expanded; each node is visited once, so that a bomb costs nothing to count."""
    if depth > MAX_DEPTH:
        raise SpecError(f"{_place(node, origin)}: nested more than {MAX_DEPTH} deep")
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise SpecError(f"{_place(node, origin)}: an alias stands inside what it names")
        return sizes[id(node)]
    sizes[id(node)] = 0
    total = 1 + sum(_count(child, origin, sizes, depth + 1) for child in _children(node))
    if total > MAX_NODES:
        raise SpecError(f"{_place(node, origin)}: more than {MAX_NODES:,} values once aliases are followed")
    sizes[id(node)] = total
    return total


def _construct(node: yaml.Node, path: Path, marks: dict[Path, Mark], origin: str) -> Any:
    marks.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.MappingNode):
        _require_tag(node, "map", origin)
        return _mapping(node, path, marks, origin)
    if isinstance(node, yaml.SequenceNode):
        _require_tag(node, "seq", origin)
        return [_construct(child, (*path, i), marks, origin) for i, child in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node, origin)


def _mapping(node: yaml.MappingNode, path: Path, marks: dict[Path, Mark], origin: str) -> dict[str, Any]:
    own: dict[str, Any] = {}
    first: dict[str, yaml.Node] = {}
    merged: list[yaml.Node] = []
    for key_node, value_node in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            continue
        key = _scalar(key_node, origin) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise SpecError(f"{_place(key_node, origin)}: a key must be text, but got {key!r}: put it in quotes")
        if key in first:
            raise SpecError(
                f"{_place(key_node, origin)}: '{key}' stands here a second time (first in line "
                f"{first[key].start_mark.line + 1}): remove one"
            )
        first[key] = key_node
        marks[(*path, key)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        own[key] = _construct(value_node, (*path, key), marks, origin)
    for source in merged:
        if not isinstance(source, yaml.MappingNode):
            raise SpecError(f"{_place(source, origin)}: '<<' merges mappings, but got {_kind(source)}")
        own = {**_mapping(source, path, {}, origin), **own}
    return own


def _scalar(node: yaml.ScalarNode, origin: str) -> Any:
    tag = node.tag.removeprefix("tag:yaml.org,2002:")
    if tag == "str" and (node.style or parse_scalar(node.value) == node.value):
        return node.value
    explicit = node.style is not None or tag not in ("null", "bool", "int", "float", "str", "merge")
    if explicit or tag == "str":
        told = f"tags are not read here, but got !{tag.lstrip('!')}: write the plain value"
        raise SpecError(f"{_place(node, origin)}: {told}")
    if _NOT_FINITE.match(node.value):
        raise SpecError(f"{_place(node, origin)}: a number must be finite, but got {node.value}")
    value = parse_scalar(node.value)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise SpecError(f"{_place(node, origin)}: a number must be finite, but got {node.value}")
    return value


def _require_tag(node: yaml.Node, expected: str, origin: str) -> None:
    if node.tag != f"tag:yaml.org,2002:{expected}":
        raise SpecError(f"{_place(node, origin)}: tags are not read here, but got {node.tag}: write the plain value")


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what our loader would read as something else than text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def dump_yaml(value: Any) -> str:
    """YAML that `load_yaml` reads back as `value`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


# -- from pydantic's errors to ours ----------------------------------------------------------------------------------


def refuse(problems: Sequence[Problem], document: Document) -> None:
    """SpecError with every problem on a line of its own; nothing if there are none."""
    if not problems:
        return
    told = list(dict.fromkeys(f"{document.place(p.path)}: {dotted(p.path)}: {p.message}" for p in problems))
    more = [f"… and {len(told) - MAX_LISTED} more"] if len(told) > MAX_LISTED else []
    raise SpecError("\n".join(told[:MAX_LISTED] + more))


def dotted(path: Path) -> str:
    """`base.train.lr`, `axes[0].values[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "(top)"


def validated(model: type[M], value: Any, path: Path = ()) -> tuple[M | None, list[Problem]]:
    """`value`, as YAML or JSON gives it, as a `model`; or None and what is wrong, paths prefixed with `path`.

    Strict: no text is read as a number and no boolean as an integer; lists are tuples where the model wants them.
    """
    try:
        return model.model_validate_json(json.dumps(value), strict=True), []
    except ValidationError as error:
        return None, problems_of(error, model, path)


def problems_of(error: ValidationError, model: type[BaseModel], path: Path = ()) -> list[Problem]:
    """What pydantic found wrong, one problem per place, with the closest known key or choice."""
    by_place: dict[Path, list[str]] = {}
    for detail in error.errors(include_url=False):
        known, location = _walk(model, detail["loc"])
        messages = by_place.setdefault((*path, *location), [])
        message = _message(dict(detail), known)
        if message not in messages:
            messages.append(message)
    # Where one member of a union fits well enough to be wrong inside, that others do not fit at all is no news.
    outer = {place[:n] for place in by_place for n in range(len(place))}
    return [Problem(place, _alternatives(told)) for place, told in by_place.items() if place not in outer]


def _alternatives(messages: list[str]) -> str:
    """One sentence from those of a union's members: `must be an integer or 'full', but got "ful"`."""
    split = [m.removeprefix("must be ").partition(", but got ") for m in messages]
    if len(messages) == 1 or not all(got for _, got, _ in split):
        return " - or: ".join(messages)
    return f"must be {' or '.join(wanted for wanted, _, _ in split)}, but got {split[-1][2]}"


def _message(detail: dict[str, Any], known: dict[str, Any]) -> str:
    kind, context, given = detail["type"], detail.get("ctx", {}), detail.get("input")
    name = str(detail["loc"][-1]) if detail["loc"] else ""
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(name, known)}"
    if kind == "missing":
        told = known[name].description if name in known else None
        return "missing, and has no default" + (f" ({told})" if told else "")
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context.get("expected") or context["expected_tags"]
        said = given if kind == "literal_error" else context["tag"]
        choices = re.findall(r"'([^']*)'", expected)
        hint = did_you_mean(said, choices) if isinstance(said, str) and choices else ""
        return f"must be {expected}, but got {said!r}{hint if 'did you mean' in hint else ''}"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", detail["msg"]))
    words = detail["msg"].replace("Input should be", "must be").replace("valid ", "")
    for ours, theirs in (("a mapping", "an object"), ("a list", "a array"), ("an integer", "a integer")):
        words = words.replace(theirs, ours)
    shown = json.dumps(given, default=repr)
    return f"{words}, but got {shown if len(shown) <= 80 else shown[:77] + '...'}"


def _walk(model: type[BaseModel], location: tuple[str | int, ...]) -> tuple[dict[str, Any], Path]:
    """The fields of the model that holds the last step of a location, and the location without pydantic's own steps.

    Pydantic names the member of a union in a location (`batch`, `literal['full']`); a user has no such keys.
    """
    known: dict[str, Any] = dict(model.model_fields)
    cleaned: list[str | int] = []
    inside: list[Any] = [model]
    for step in location:
        if len(inside) > 1:
            named = [t for t in inside if getattr(t, "__name__", "-") in str(step)]
            inside = (named or inside)[:1] if not all(_is_model(t) for t in inside) else [_Union(named or inside)]
            continue
        fields = inside[0].model_fields if inside and _is_model(inside[0]) else {}
        known = dict(fields)
        if step in fields:
            inside = _members(fields[str(step)].annotation)
        else:
            arguments = [a for a in get_args(inside[0]) if a is not Ellipsis] if inside else []
            inside = [m for argument in arguments[-1:] for m in _members(argument)]
        cleaned.append(step)
    return known, tuple(cleaned)


class _Union:
    """Stands for models of which it is not known which was meant: it has the fields of all."""

    def __init__(self, models: list[Any]) -> None:
        self.model_fields = {name: info for m in models for name, info in m.model_fields.items()}


def _is_model(kind: Any) -> bool:
    return isinstance(kind, _Union) or (isinstance(kind, type) and issubclass(kind, BaseModel))


def _members(annotation: Any) -> list[Any]:
    """The plain types of an annotation: unions opened, `Annotated` taken off, None left out."""
    origin = get_origin(annotation)
    if annotation is types.NoneType:
        return []
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]
