"""One axis of a sweep: its path, its role in the statistics, and its values - listed, counted or drawn at random."""

import math
import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ndt_ray.errors import SpecError
from ndt_ray.spec import Strict

Role = Literal["compare", "replicate", "nuisance"]
Count = Annotated[int, Field(gt=0, le=10_000_000)]


class Choice(Strict):
    """Some of the given values, drawn without replacement."""

    kind: Literal["choice"]
    values: tuple[Any, ...] = Field(min_length=1)
    n: Count
    seed: int = 0

    def draw(self, path: str) -> list[Any]:
        """The first n of a shuffle: a larger n keeps what a smaller one drew."""
        if self.n > len(self.values):
            raise SpecError(f"choice draws without replacement, but got n={self.n} of {len(self.values)} values")
        left, source = list(self.values), _source(self.seed, path)
        return [left.pop(int(source.random() * len(left))) for _ in range(self.n)]


class Uniform(Strict):
    """Numbers drawn uniformly, or uniformly in their logarithm, from [low, high]; whole ones with `integer`."""

    kind: Literal["uniform", "log_uniform"]
    low: float
    high: float
    n: Count
    seed: int = 0
    integer: bool = False

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "Uniform":
        if self.low >= self.high or (self.kind == "log_uniform" and self.low <= 0):
            above = " and 0 < low" if self.kind == "log_uniform" else ""
            raise ValueError(f"low < high{above} must hold, but got (low={self.low}, high={self.high})")
        return self

    def draw(self, path: str) -> list[Any]:
        """A larger n keeps what a smaller one drew. Six digits, so that no machine's libm enters a trial's id."""
        source, drawn = _source(self.seed, path), []
        low, high = (math.log(self.low), math.log(self.high)) if self.kind == "log_uniform" else (self.low, self.high)
        for _ in range(self.n):
            value = low + (high - low) * source.random()
            value = float(f"{math.exp(value) if self.kind == 'log_uniform' else value:.6g}")
            drawn.append(round(value) if self.integer else min(max(value, self.low), self.high))
        return drawn


def _source(seed: int, path: str) -> random.Random:
    """Different axes draw differently from the same seed. `random()` is the same in every Python version."""
    return random.Random(f"{seed}:{path}")


class Range(Strict):
    """start, start + step, ... below stop."""

    start: float | int = 0
    stop: float | int
    step: float | int = 1

    @model_validator(mode="after")
    def _has_a_direction(self) -> "Range":
        if self.step <= 0:
            raise ValueError(f"step > 0 must hold, but got (step={self.step})")
        return self

    def numbers(self) -> Sequence[int | float]:
        """In decimal arithmetic: 0.1, 0.2, 0.3 and not 0.30000000000000004."""
        if all(isinstance(v, int) for v in (self.start, self.stop, self.step)):
            return range(int(self.start), int(self.stop), int(self.step))
        start, stop, step = (Decimal(repr(v)) for v in (self.start, self.stop, self.step))
        count = max(0, math.ceil((stop - start) / step))
        if count > 10_000_000:
            raise SpecError(f"more than 10,000,000 values ({count:,})")
        return [float(start + i * step) for i in range(count)]


def _usual_role(given: dict[str, Any]) -> Role:
    return "replicate" if str(given.get("path")).partition(".")[0] == "seed" else "compare"


class Axis(Strict):
    """One thing that varies: its path in the trial, its role in the statistics, and its values."""

    path: str = Field(description="field of the trial: model, data, seed, train.lr, model.width, ...")
    role: Role = Field(default_factory=_usual_role, description="compare; replicate (default for seeds); nuisance")
    values: tuple[Any, ...] | None = Field(default=None, description="the values themselves")
    range: Annotated[int, Field(ge=0)] | tuple[int, int] | Range | None = Field(
        default=None, description="n: 0 ... n-1; [a, b]: a ... b-1; or {start, stop, step}"
    )
    sample: Annotated[Choice | Uniform, Field(discriminator="kind")] | None = Field(
        default=None, description="values drawn at random, the same in every run"
    )

    @model_validator(mode="after")
    def _one_source_of_values(self) -> "Axis":
        given = [name for name in ("values", "range", "sample") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of values, range and sample, but got {' and '.join(given) or 'none'}")
        return self

    def points(self) -> Sequence[Any]:
        """The values in order; a range of whole numbers stays one. SpecError where there is none."""
        if self.values is not None:
            found: Sequence[Any] = self.values
        elif isinstance(self.range, int):
            found = range(self.range)
        elif isinstance(self.range, tuple):
            found = range(*self.range)
        elif self.range is not None:
            found = self.range.numbers()
        else:
            assert self.sample is not None
            found = self.sample.draw(self.path)
        if not found:
            raise SpecError("has no values: give at least one")
        return found
