"""Initial weights as a function of (seed, tensor name) alone, the same bits on every machine.

Each parameter has a Philox stream of its own, so neither the order of construction nor a layer added elsewhere
changes it. Only operations that IEEE 754 rounds correctly are used (+ - * / sqrt): numpy's own `log` is compiled once
per instruction set and not equal in the last bit everywhere.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Floats = npt.NDArray[np.float64]
LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Uniform:
    """U(-bound, bound)."""

    bound: float


@dataclass(frozen=True)
class Normal:
    """N(0, std²)."""

    std: float


@dataclass(frozen=True)
class Constant:
    """One value everywhere; draws nothing."""

    value: float


Initial = Uniform | Normal | Constant


def init_parameters(module: nn.Module, seed: int) -> None:
    """Fill every parameter of `module` in place from the stream of (seed, its full name).

    The distribution is PyTorch's default for the leaf that owns the parameter. A module overrides it through an
    attribute ``initial: dict[str, Initial]`` of parameter paths relative to itself; the outermost module wins.
    Raises TypeError on a parameter whose leaf has no known default and no override.
    """
    overrides: dict[str, Initial] = {}
    for prefix, owner in module.named_modules():
        for path, initial in getattr(owner, "initial", {}).items():
            overrides.setdefault(f"{prefix}.{path}" if prefix else path, initial)
    with torch.no_grad():
        for prefix, leaf in module.named_modules():
            for name, parameter in leaf.named_parameters(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                initial = overrides[full] if full in overrides else _default(leaf, name, full)
                parameter.copy_(torch.from_numpy(draw(initial, tuple(parameter.shape), seed, full)))
            if isinstance(leaf, nn.Embedding) and leaf.padding_idx is not None:
                leaf.weight[leaf.padding_idx] = 0


def draw(initial: Initial, shape: tuple[int, ...], seed: int, name: str) -> Floats:
    """The float64 array of `shape` that the tensor `name` starts from under `seed`."""
    if isinstance(initial, Constant):
        return np.full(shape, initial.value)
    n = math.prod(shape)
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16]
    philox = np.random.Philox(key=int.from_bytes(key, "little"))
    if isinstance(initial, Uniform):
        return (initial.bound * _symmetric(philox, n)).reshape(shape)
    return (initial.std * _normals(philox, n)).reshape(shape)


def _default(leaf: nn.Module, name: str, full: str) -> Initial:
    """PyTorch's `reset_parameters` of the leaf types that models here are made of."""
    if isinstance(leaf, nn.Linear | nn.Conv2d):
        # kaiming_uniform_(a=sqrt(5)) is U(±1/sqrt(fan_in)), and so is the bias.
        return Uniform(1 / math.sqrt(leaf.weight[0].numel()))
    if isinstance(leaf, nn.Embedding):
        return Normal(1.0)
    if isinstance(leaf, nn.LayerNorm | nn.GroupNorm):
        return Constant(1.0 if name == "weight" else 0.0)
    raise TypeError(f"no initial distribution is known for {full} of a {type(leaf).__name__}: give it one in `initial`")


def _symmetric(philox: np.random.Philox, n: int) -> Floats:
    """`n` multiples of 2⁻⁵² in [-1, 1), exact."""
    words: npt.NDArray[np.uint64] = philox.random_raw(n)
    values: Floats = (words >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    return values


def _normals(philox: np.random.Philox, n: int) -> Floats:
    """`n` standard normals by Marsaglia's polar method; a prefix of those of any larger `n`."""
    parts: list[Floats] = []
    missing = n
    while missing > 0:
        pairs = int(missing / 2 * 1.3) + 16  # 4/π = 1.27 pairs are drawn for one that falls into the disc
        xy = _symmetric(philox, 2 * pairs).reshape(pairs, 2)
        s = xy[:, 0] * xy[:, 0] + xy[:, 1] * xy[:, 1]
        inside = (s > 0) & (s < 1)
        xy, s = xy[inside], s[inside]
        parts.append((xy * np.sqrt(-2.0 * _log(s) / s)[:, None]).ravel())
        missing -= parts[-1].size
    return np.concatenate([np.empty(0), *parts])[:n]


def _log(x: Floats) -> Floats:
    """Natural logarithm within 2 ulp: ln x = e ln 2 + 2 artanh((m-1)/(m+1)) for x = m 2ᵉ, √½ ≤ m < √2."""
    m, e = np.frexp(x)
    low = m < math.sqrt(0.5)
    m, e = np.where(low, 2.0 * m, m), np.where(low, e - 1, e)
    t = (m - 1.0) / (m + 1.0)
    tt = t * t  # ≤ 0.0295, so that twelve terms leave 1e-19
    series = np.zeros_like(t)
    for k in range(11, -1, -1):
        series = series * tt + 2.0 / (2 * k + 1)
    value: Floats = t * series + e * LN2
    return value
