"""The fields of a trial by name, and filters on them: `model = cnn_deep and train.lr < 1e-2`.

Grammar: comparisons `field OP value` with = == != < <= > >= and ~ (glob pattern), `field in [a, b]`, `field not in
[a, b]`, joined by `and`, `or`, `not` and parentheses. Values are numbers, true, false, null, and text, which needs
quotes only where it holds blanks or signs of the grammar. Nothing is evaluated as code.
"""

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.spec import Trial
from ndt_ray.spec.loader import parse_scalar

Getter = Callable[[Trial], Any]
Test = Callable[[Trial], bool]

RESOLVED = ("trial_id", "engine")
"""Fields that have their value only once the plan has resolved a trial."""
CONTROL = ("kind", "layer", "damage", "branch", "at", "until", "dose", "factor", "lr_from")
"""Parts of a control: a condition may read them; a sweep file writes the whole, as text."""
NO_FIELDS = ("model.params", "data.params", *(f"control.{part}" for part in CONTROL), "width", "source")
MAX_LENGTH = 10_000
MAX_DEPTH = 50


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _attribute(path: str) -> Getter:
    parts = path.split(".")

    def get(trial: Trial) -> Any:
        value: Any = trial
        for part in parts:
            value = getattr(value, part)
        return value

    return get


def _param(owner: str, name: str) -> Getter:
    def get(trial: Trial) -> Any:
        return getattr(trial, owner).params.get(name)

    return get


def common_seed(trial: Trial) -> int | None:
    """The one number of all four seeds; None where they differ."""
    seeds = {trial.seed.init, trial.seed.order, trial.seed.dropout, trial.seed.data}
    return seeds.pop() if len(seeds) == 1 else None


SECTIONS = ("train", "train.schedule", "measure", "evaluate", "checkpoint")
"""Mappings that an axis may set as a whole."""
LEAVES = tuple(path for path in _leaves(Trial) if path not in NO_FIELDS)
_WHOLE: dict[str, Getter] = {
    "model": lambda t: t.model.name,
    "data": lambda t: t.data.name,
    "seed": common_seed,
    "control": lambda t: str(t.control),
    **{f"control.{part}": _attribute(f"control.{part}") for part in CONTROL},
    "trial_id": lambda t: t.trial_id,
}
_SHORT: dict[str, list[str]] = {}
for _path in LEAVES:
    _SHORT.setdefault(_path.rpartition(".")[2], []).append(_path)


def field(name: str, params: Mapping[str, Iterable[str]] | None = None) -> tuple[str, Getter]:
    """The full path of a trial's field and what reads it; SpecError with the closest one if there is none.

    `model`, `data`, `seed` and `control` read as a sweep file writes them; `lr` is short for `train.lr` where no other
    field ends so. `params` names the parameters of models and data sets that the sweep mentions: {"model": ["width"]}.
    """
    params = params or {}
    if name in _WHOLE:
        return name, _WHOLE[name]
    if name in LEAVES:
        return name, _attribute(name)
    owner, _, rest = name.partition(".")
    parameter = rest.removeprefix("params.")
    if owner in ("model", "data") and parameter in params.get(owner, ()):
        return f"{owner}.{parameter}", _param(owner, parameter)
    full = _SHORT.get(name, []) + [f"{o}.{p}" for o in ("model", "data") for p in params.get(o, ()) if p == name]
    if len(full) == 1:
        return field(full[0], params)
    if full:
        raise SpecError(f"'{name}' may be any of {', '.join(full)}: write which")
    known = [*_WHOLE, *LEAVES, *(f"{o}.{p}" for o in ("model", "data") for p in params.get(o, ()))]
    raise SpecError(f"unknown field '{name}'{closest_path(name, known)}")


def closest_path(name: str, known: Iterable[str]) -> str:
    """Like `did_you_mean`, for paths: `lrs` is close to `train.lr`."""
    known = list(known)
    last = name.rpartition(".")[2]
    ends = difflib.get_close_matches(last, {k.rpartition(".")[2] for k in known}, n=1)
    whole = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    found = whole or [k for k in known if k.rpartition(".")[2] in ends][:3]
    return f" - did you mean {' or '.join(repr(k) for k in found)}?" if found else did_you_mean(name, known)


class Where:
    """A parsed filter: `where(trial)` says whether the trial is in, `fields` names what it reads.

    SpecError, with the expression and the place in it, for whatever is wrong with it.
    """

    def __init__(self, text: str, params: Mapping[str, Iterable[str]] | None = None) -> None:
        self.text = text
        self.fields: list[str] = []
        self._params = params
        self._tokens = _tokens(text)
        self._at = 0
        self._test = self._either(0)
        if self._peek() is not None:
            raise self._error("expected 'and', 'or' or the end")

    def __call__(self, trial: Trial) -> bool:
        return self._test(trial)

    @property
    def needs_resolved(self) -> bool:
        """Whether it reads what only the plan fills in, such as `trial_id`."""
        return any(name in RESOLVED for name in self.fields)

    # -- grammar -------------------------------------------------------------------------------------------------

    def _either(self, depth: int) -> Test:
        tests = [self._all(depth)]
        while self._take("or"):
            tests.append(self._all(depth))
        return tests[0] if len(tests) == 1 else lambda trial: any(test(trial) for test in tests)

    def _all(self, depth: int) -> Test:
        tests = [self._one(depth)]
        while self._take("and"):
            tests.append(self._one(depth))
        return tests[0] if len(tests) == 1 else lambda trial: all(test(trial) for test in tests)

    def _one(self, depth: int) -> Test:
        if depth > MAX_DEPTH:
            raise self._error(f"nested more than {MAX_DEPTH} deep")
        if self._take("not"):
            inner = self._one(depth + 1)
            return lambda trial: not inner(trial)
        if self._take("("):
            inner = self._either(depth + 1)
            if not self._take(")"):
                raise self._error("expected ')'")
            return inner
        return self._comparison()

    def _comparison(self) -> Test:
        token = self._peek()
        if token is None or token[0] != "word":
            raise self._error("expected a field, such as model or train.lr")
        try:
            path, get = field(token[1], self._params)
        except SpecError as error:
            raise self._error(str(error)) from None
        self._at += 1
        self.fields.append(path)
        if self._take("in"):
            return _among(get, self._list())
        if self._take("not"):
            if not self._take("in"):
                raise self._error("expected 'in' after 'not'")
            among = _among(get, self._list())
            return lambda trial: not among(trial)
        operator = self._peek()
        if operator is None or operator[1] not in _OPERATORS:
            raise self._error("expected one of = != < <= > >= ~ in, not in")
        self._at += 1
        return _compared(get, _OPERATORS[operator[1]], self._value())

    def _list(self) -> list[Any]:
        close = "]" if self._take("[") else ")" if self._take("(") else None
        if close is None:
            raise self._error("expected a list: [a, b]")
        values: list[Any] = []
        while not self._take(close):
            values.append(self._value())
            if not self._take(",") and (self._peek() or ("", ""))[1] != close:
                raise self._error(f"expected ',' or '{close}'")
        return values

    def _value(self) -> Any:
        token = self._peek()
        if token is None or token[0] == "sign":
            raise self._error("expected a value")
        self._at += 1
        return token[1] if token[0] == "quoted" else parse_scalar(token[1])

    # -- tokens --------------------------------------------------------------------------------------------------

    def _peek(self) -> tuple[str, str, int] | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self, text: str) -> bool:
        token = self._peek()
        found = token is not None and token[0] != "quoted" and token[1].lower() == text
        self._at += found
        return found

    def _error(self, problem: str) -> SpecError:
        token = self._peek()
        place = f"at '{token[1]}' (character {token[2] + 1})" if token else "at the end"
        return SpecError(f"where: {problem} {place} of: {self.text}")


_TOKEN = re.compile(r"\s*(?:(<=|>=|!=|==|[=<>~()\[\],])|'([^']*)'|\"([^\"]*)\"|([\w.:/*?+-]+))")


def _tokens(text: str) -> list[tuple[str, str, int]]:
    if len(text) > MAX_LENGTH:
        raise SpecError(f"where: longer than {MAX_LENGTH:,} characters")
    found: list[tuple[str, str, int]] = []
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise SpecError(f"where: cannot read '{text[at:].strip()[:20]}' (character {at + 1}) of: {text}")
        sign, single, double, word = match.groups()
        kind = "sign" if sign else "word" if word else "quoted"
        value = next(g for g in (sign, single, double, word) if g is not None)
        found.append((kind, value, match.end() - len(value) - (kind == "quoted")))
        at = match.end()
    return found


def equal(value: Any, wanted: Any) -> bool:
    """Whether a field has a value: a list as a list, a boolean only as one, numbers as numbers."""
    if isinstance(value, tuple):
        value = list(value)
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _ordered(better: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(value: Any, wanted: Any) -> bool:
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (value, wanted))
        return numbers and better(value, wanted)

    return compare


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": equal,
    "==": equal,
    "!=": lambda value, wanted: not equal(value, wanted),
    "<": _ordered(lambda a, b: a < b),
    "<=": _ordered(lambda a, b: a <= b),
    ">": _ordered(lambda a, b: a > b),
    ">=": _ordered(lambda a, b: a >= b),
    "~": lambda value, wanted: isinstance(value, str) and fnmatch.fnmatchcase(value, str(wanted)),
}


def _compared(get: Getter, operator: Callable[[Any, Any], bool], wanted: Any) -> Test:
    return lambda trial: operator(get(trial), wanted)


def _among(get: Getter, wanted: list[Any]) -> Test:
    def test(trial: Trial) -> bool:
        value = get(trial)
        return any(equal(value, w) for w in wanted)

    return test
