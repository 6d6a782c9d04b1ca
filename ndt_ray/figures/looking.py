"""Looking into a network: attention patterns, filters, activations, made images - pictures of arrays.

`VisualizationTools` has them under the names that the founding report gives them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ndt_ray.errors import SpecError
from ndt_ray.figures.canvas import INK, NORMAL, SMALL, canvas, head, save, step_axis

Floats = NDArray[np.float64]
MOST_FILTERS = 16
EVENT = "#d62728"


def attention_pattern(attention: ArrayLike, head_index: int = 0, title: str = "") -> Figure:
    """One head of `[heads, queries, keys]` or, meaned over the batch, `[n, heads, queries, keys]`: query × key."""
    patterns = _heads(attention)
    if not 0 <= head_index < len(patterns):
        raise SpecError(f"there are {len(patterns)} heads, counted from 0, but got ({head_index=})")
    drawn = canvas(
        (3.4, 3.2), (1, 1), 1, (title or f"Attention of head {head_index}", "query × key, mean over stimuli")
    )
    _image(drawn.axes[0], patterns[head_index], bar=drawn.figure)
    _named(drawn.axes[0], "key", "query")
    return drawn.figure


def attention_heads(before: ArrayLike, after: ArrayLike, names: tuple[str, str] = ("before", "after")) -> Figure:
    """All heads at two checkpoints, above each other, on one scale of colours."""
    a, b = _heads(before), _heads(after)
    if a.shape != b.shape:
        raise SpecError(f"two checkpoints of one layer have patterns of one shape, but got {a.shape} and {b.shape}")
    n = len(a)
    drawn = canvas(
        (1.5 * n + 0.5, 3.2), (2, n), 2 * n, ("Attention, head by head", f"{names[0]} above, {names[1]} below")
    )
    most = float(max(a.max(), b.max()))
    for i, axes in enumerate(drawn.axes):
        _image(axes, (a if i < n else b)[i % n], limits=(0.0, most))
        head(axes, f"head {i % n}", 1.4)
    return drawn.figure


def filters(weight: ArrayLike, title: str = "Filters") -> Figure:
    """Up to 16 filters of `[out, in, height, width]`, first input channel, in a square; one scale, white at 0."""
    w = np.asarray(weight, dtype=np.float64)
    if w.ndim != 4 or not len(w):
        raise SpecError(f"filters have shape [out, in, height, width], but got {w.shape}")
    shown = w[:MOST_FILTERS, 0]
    side = math.ceil(math.sqrt(len(shown)))
    told = f"{len(shown)} of {len(w)} filters, first input channel"
    drawn = canvas((0.8 * side + 0.4, 0.8 * side), (math.ceil(len(shown) / side), side), len(shown), (title, told))
    most = float(np.abs(shown).max()) or 1.0
    for axes, kernel in zip(drawn.axes, shown, strict=True):
        _image(axes, kernel, colours="RdBu_r", limits=(-most, most))
    return drawn.figure


def activations(values: ArrayLike, title: str = "Activations") -> Figure:
    """Features × samples, from `[samples, features]`."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2:
        raise SpecError(f"activations have shape [samples, features], but got {x.shape}")
    drawn = canvas((4.6, 3.4), (1, 1), 1, (title, f"{x.shape[1]} features × {x.shape[0]} samples"))
    _image(drawn.axes[0], x.T, bar=drawn.figure, aspect="auto")
    _named(drawn.axes[0], "sample", "feature")
    return drawn.figure


def entropy_evolution(steps: ArrayLike, entropy: ArrayLike, events: Sequence[float] = ()) -> Figure:
    """Entropy (of one or, `[steps, heads]`, several heads) over training, red dashed lines at the events' steps."""
    at, values = np.asarray(steps, dtype=np.float64), np.asarray(entropy, dtype=np.float64)
    if at.ndim != 1 or len(at) != len(values):
        raise SpecError(f"one row of entropies a step is needed, but got {at.shape} and {values.shape}")
    told = f"{len(events)} events" if len(events) else "no events"
    drawn = canvas((4.6, 2.8), (1, 1), 1, ("Attention entropy over training", told))
    (axes,) = drawn.axes
    for i, column in enumerate(values.reshape(len(at), -1).T):
        axes.plot(at, column, lw=1.1, label=f"head {i}" if values.ndim > 1 else None)
    for step in events:
        axes.axvline(step, color=EVENT, ls="--", lw=0.9)
    _named(axes, "step", "entropy (nats)")
    step_axis(axes, float(at.max()) if len(at) else 1.0)
    if values.ndim > 1:
        axes.legend(fontsize=SMALL - 1, frameon=False)
    return drawn.figure


def made_images(images: ArrayLike, words: Sequence[str] = (), title: str = "What drives the units most") -> Figure:
    """Images `[n, C, H, W]` as small multiples, each on its own scale, with a word below; one or three channels."""
    x = np.asarray(images, dtype=np.float64)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise SpecError(f"images have shape [n, 1 or 3, height, width], but got {x.shape}")
    columns = min(len(x), 10)
    rows = math.ceil(len(x) / columns)
    drawn = canvas((0.95 * columns, 1.1 * rows), (rows, columns), len(x), (title, f"{len(x)} units"))
    for i, axes in enumerate(drawn.axes):
        low, high = float(x[i].min()), float(x[i].max())
        shown = (x[i] - low) / (high - low or 1.0)
        if len(shown) == 1:
            _image(axes, shown[0], colours="gray")
        else:
            axes.imshow(shown.transpose(1, 2, 0), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        if i < len(words):
            axes.set_xlabel(words[i], fontsize=SMALL - 1, color=INK, labelpad=2)
    return drawn.figure


class VisualizationTools:
    """The founding report's plots. Each returns its figure and, with `save_path`, writes it too; none stays open."""

    @staticmethod
    def plot_attention_pattern(attn: ArrayLike, head_idx: int = 0, save_path: str | Path | None = None) -> Figure:
        """See `attention_pattern`."""
        return _kept(attention_pattern(attn, head_idx), save_path)

    @staticmethod
    def plot_attention_heads_comparison(
        before: ArrayLike, after: ArrayLike, save_path: str | Path | None = None
    ) -> Figure:
        """See `attention_heads`."""
        return _kept(attention_heads(before, after), save_path)

    @staticmethod
    def plot_filter_visualization(weight: ArrayLike, save_path: str | Path | None = None) -> Figure:
        """See `filters`."""
        return _kept(filters(weight), save_path)

    @staticmethod
    def plot_activation_heatmap(acts: ArrayLike, save_path: str | Path | None = None) -> Figure:
        """See `activations`."""
        return _kept(activations(acts), save_path)

    @staticmethod
    def plot_entropy_evolution(
        steps: ArrayLike, entropy: ArrayLike, jumps: Sequence[float] = (), save_path: str | Path | None = None
    ) -> Figure:
        """See `entropy_evolution`."""
        return _kept(entropy_evolution(steps, entropy, jumps), save_path)


def _kept(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        save(figure, path)
    return figure


def _heads(attention: ArrayLike) -> Floats:
    x = np.asarray(attention, dtype=np.float64)
    if x.ndim not in (3, 4):
        raise SpecError(f"attention has shape [heads, queries, keys], or a batch of such, but got {x.shape}")
    return x if x.ndim == 3 else np.asarray(x.mean(0))


def _image(
    axes: Axes,
    values: Floats,
    colours: str = "viridis",
    limits: tuple[float, float] | None = None,
    bar: Figure | None = None,
    aspect: Any = "equal",
) -> None:
    low, high = limits or (None, None)
    drawn = axes.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest", aspect=aspect)
    if bar is None:
        axes.set(xticks=[], yticks=[])
    else:
        bar.colorbar(drawn, ax=axes, shrink=0.8).ax.tick_params(labelsize=SMALL)


def _named(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=NORMAL, color=INK)
    axes.set_ylabel(y, fontsize=NORMAL, color=INK)
