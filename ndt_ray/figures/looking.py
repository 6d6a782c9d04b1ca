"""Looking into a network: attention patterns, filters, activations, made images - pictures of arrays.

`VisualizationTools` has them under the names that the founding report gives them.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ndt_ray.errors import SpecError
from ndt_ray.figures.canvas import GREY, INK, NORMAL, SMALL, canvas, head, save, step_axis

Floats = NDArray[np.float64]
MOST_FILTERS = 16
EVENT = "#d62728"
MOST_CLASSES = 20
"""Whose names fit below a panel."""


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
    return attention_over({names[0]: before, names[1]: after})


def attention_over(patterns: Mapping[str, ArrayLike], title: str = "Attention, head by head", told: str = "") -> Figure:
    """All heads (columns) at one or more checkpoints (rows, by name), on one scale of colours: query × key."""
    found = {name: _heads(values) for name, values in patterns.items()}
    shapes = {values.shape for values in found.values()}
    if len(shapes) != 1:
        raise SpecError(f"checkpoints of one layer have patterns of one shape, but got {sorted(shapes)}")
    (n, queries, keys) = shapes.pop()
    tall = float(np.clip(1.5 * queries / keys, 0.55, 1.6))
    told = told or ", ".join(found) + " from above; query (down) × key (across), mean over stimuli"
    drawn = canvas((1.5 * n + 1.2, (tall + 0.25) * len(found) + 0.3), (len(found), n), n * len(found), (title, told))
    most = max(float(values.max()) for values in found.values())
    for row, (name, values) in enumerate(found.items()):
        for i in range(n):
            axes = drawn.axes[row * n + i]
            shape: Literal["equal", "auto"] = "equal" if 0.3 < queries / keys < 3 else "auto"
            image = axes.imshow(values[i], "viridis", vmin=0.0, vmax=most, interpolation="nearest", aspect=shape)
            axes.set(xticks=[], yticks=[])
            if row == 0:
                head(axes, f"head {i}", 1.4)
            if i == 0:
                axes.set_ylabel(name.replace(" (", "\n("), fontsize=SMALL, color=INK)
            if row == len(found) - 1:
                axes.set_xlabel("key", fontsize=SMALL, color=INK)
    _bar(drawn.figure, image, drawn.axes, "attention")
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


def filters_over(
    weights: Mapping[str, ArrayLike], cosines: Mapping[str, ArrayLike], title: str = "Filters", told: str = ""
) -> Figure:
    """A column a checkpoint, by name: up to 16 kernels (the input channel of most energy there) where the weights are
    kernels, and the cosines of all pairs of rows; one scale of colours a row.

    `weights`: [out, in, height, width], none for layers without kernels; `cosines`: [n, n].
    """
    kernels = {name: np.asarray(w, dtype=np.float64) for name, w in weights.items()}
    if not cosines or any(w.ndim != 4 for w in kernels.values()):
        raise SpecError("cosines of one or more checkpoints are needed, and kernels are [out, in, height, width]")
    rows, names = (2 if kernels else 1), list(cosines)
    drawn = canvas((2.5 * len(names) + 0.7, 2.4 * rows + 0.2), (rows, len(names)), rows * len(names), (title, told))
    if kernels:
        channel = int((list(kernels.values())[-1] ** 2).sum((0, 2, 3)).argmax())
        sheets = {name: _mosaic(w[:MOST_FILTERS, channel]) for name, w in kernels.items()}
        most = max(float(np.nanmax(np.abs(sheet))) for sheet in sheets.values()) or 1.0
        for axes, name in zip(drawn.axes, names, strict=False):
            head(axes, name, 2.2)
            if name in sheets:
                image = axes.imshow(sheets[name], "RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            _frameless(axes)
        shape = next(iter(kernels.values())).shape
        said = f"{min(shape[0], MOST_FILTERS)} of {shape[0]} filters\ninput channel {channel} of {shape[1]}"
        drawn.axes[0].set_ylabel(said, fontsize=SMALL, color=INK)
        _bar(drawn.figure, image, drawn.axes[: len(names)], "weight")
    for axes, name in zip(drawn.axes[-len(names) :], names, strict=True):
        if not kernels:
            head(axes, name, 2.2)
        image = axes.imshow(np.asarray(cosines[name]), "RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_xlabel("filter", fontsize=SMALL, color=INK)
    drawn.axes[-len(names)].set_ylabel("filter", fontsize=SMALL, color=INK)
    _bar(drawn.figure, image, drawn.axes[-len(names) :], "cosine")
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


def activations_over(
    values: Mapping[str, ArrayLike], labels: ArrayLike, title: str = "Activations", told: str = ""
) -> Figure:
    """Features × samples at one or more checkpoints, samples ordered by class; one scale, which leaves out 1 % of the
    values. `values`: [samples, features] by name; `labels` [samples]."""
    y = np.asarray(labels)
    order = np.argsort(y, kind="stable")
    found = {name: np.asarray(x, dtype=np.float64) for name, x in values.items()}
    if not found or any(x.ndim != 2 or len(x) != len(y) for x in found.values()):
        raise SpecError(
            f"activations have shape [{len(y)} samples, features], but got {[x.shape for x in found.values()]}"
        )
    drawn = canvas((2.7 * len(found) + 0.7, 3.1), (1, len(found)), len(found), (title, told), sharey=True)
    colours, limits = _scale(np.concatenate([x.ravel() for x in found.values()]))
    classes, starts = np.unique(y[order], return_index=True)
    ends = np.append(starts[1:], len(y))
    for axes, (name, x) in zip(drawn.axes, found.items(), strict=True):
        image = axes.imshow(x[order].T, colours, vmin=limits[0], vmax=limits[1], interpolation="nearest", aspect="auto")
        for edge in starts[1:] if len(classes) <= MOST_CLASSES else ():
            axes.axvline(edge - 0.5, color="white", lw=0.5)
        head(axes, name, 2.5)
        if len(classes) <= MOST_CLASSES:
            axes.set_xticks((starts + ends - 1) / 2, [str(c) for c in classes])
        axes.set_xlabel("samples by class" if len(classes) <= MOST_CLASSES else "sample", fontsize=NORMAL, color=INK)
    drawn.axes[0].set_ylabel("feature", fontsize=NORMAL, color=INK)
    _bar(drawn.figure, image, drawn.axes, "activation")
    return drawn.figure


def class_maps(
    maps: Mapping[int, ArrayLike], classes: Sequence[int], title: str, told: str = "", names: Sequence[str] = ()
) -> Figure:
    """Mean activation of each class (columns) at each step (rows), every panel titled `Class c, Step s`; one scale.

    `maps`: [classes, height, width] by step; NaN is left blank. `names`: of the two axes.
    """
    found = {step: np.asarray(values, dtype=np.float64) for step, values in maps.items()}
    if not found or any(values.ndim != 3 or len(values) != len(classes) for values in found.values()):
        raise SpecError(f"maps have shape [{len(classes)} classes, height, width]: {[v.shape for v in found.values()]}")
    n = len(classes)
    tall, wide = next(iter(found.values())).shape[1:]
    high = 1.05 * float(np.clip(tall / wide, 0.4, 1.6)) + 0.28
    drawn = canvas((1.12 * n + 1.0, high * len(found)), (len(found), n), n * len(found), (title, told))
    every = np.concatenate([values.ravel() for values in found.values()])
    colours, limits = _scale(every[np.isfinite(every)])
    for row, (step, values) in enumerate(found.items()):
        for i, c in enumerate(classes):
            axes = drawn.axes[row * n + i]
            shape: Literal["equal", "auto"] = "equal" if 0.4 <= tall / wide <= 1.6 else "auto"
            image = axes.imshow(
                values[i], colours, vmin=limits[0], vmax=limits[1], interpolation="nearest", aspect=shape
            )
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"Class {c}, Step {step:,}", fontsize=6.0, color=INK, pad=2)
    if names:
        drawn.axes[(len(found) - 1) * n].set_xlabel(names[0], fontsize=SMALL, color=INK)
        drawn.axes[(len(found) - 1) * n].set_ylabel(names[1], fontsize=SMALL, color=INK)
    _bar(drawn.figure, image, drawn.axes, "mean activation")
    return drawn.figure


def neuron(image: ArrayLike, examples: Sequence[ArrayLike], words: Sequence[str], title: str, told: str = "") -> Figure:
    """The image made for a unit beside the data's that drive it most, each on its own scale, with a word below each."""
    shown = [np.asarray(x, dtype=np.float64) for x in (image, *examples)]
    if any(x.ndim != 3 or x.shape[0] not in (1, 3) for x in shown) or len(words) != len(shown):
        raise SpecError(
            f"images have shape [1 or 3, height, width], a word each: {[x.shape for x in shown]}, {len(words)}"
        )
    drawn = canvas((1.15 * len(shown) + 0.3, 1.25), (1, len(shown)), len(shown), (title, told))
    for axes, x, word in zip(drawn.axes, shown, words, strict=True):
        _picture(axes, x)
        axes.set_xlabel(word, fontsize=SMALL, color=INK, labelpad=2)
    for spine in drawn.axes[0].spines.values():
        spine.set(visible=True, linewidth=1.6, color=EVENT)
    return drawn.figure


def attributions_over(
    image: ArrayLike, rows: Mapping[str, Mapping[str, tuple[ArrayLike, str]]], title: str, told: str = ""
) -> Figure:
    """A row a checkpoint, by name: the image, and maps of it by what they are called, each with a word below.

    Every map is on its own scale - white is 0 where there are both signs - and under the image's outline.
    `image`: [1 or 3, height, width]; maps [height, width].
    """
    picture = np.asarray(image, dtype=np.float64)
    names = list(dict.fromkeys(name for found in rows.values() for name in found))
    shapes = {np.shape(values) for found in rows.values() for values, _ in found.values()}
    if picture.ndim != 3 or not names or shapes != {picture.shape[1:]}:
        raise SpecError(f"maps have the shape of the image, {picture.shape[1:]}, but got {sorted(shapes)}")
    n = len(names) + 1
    drawn = canvas((1.55 * n + 0.7, 1.75 * len(rows) + 0.1), (len(rows), n), n * len(rows), (title, told))
    for row, (name, found) in enumerate(rows.items()):
        first, *others = drawn.axes[row * n : (row + 1) * n]
        _picture(first, picture)
        first.set_ylabel(name, fontsize=SMALL, color=INK)
        for axes, what in zip(others, names, strict=True):
            if what not in found:
                axes.set_axis_off()
                continue
            _attributed(axes, np.asarray(found[what][0], dtype=np.float64), picture)
            axes.set_xlabel(found[what][1], fontsize=SMALL, color=INK, labelpad=2)
        if row == 0:
            for axes, what in zip((first, *others), ("image", *names), strict=True):
                head(axes, what, 1.5)
    return drawn.figure


def _attributed(axes: Axes, values: Floats, picture: Floats) -> None:
    """A map of an image, in two colours where there are both signs, with the image's outline."""
    most = float(np.abs(values).max()) or 1.0
    signed = bool(values.min() < 0)
    _image(axes, values, *(("RdBu_r", (-most, most)) if signed else ("inferno", (0.0, most))))
    grey = picture.mean(0)
    if grey.max() > grey.min():
        half = [float(grey.min() + grey.max()) / 2]
        axes.contour(grey, half, colors=GREY if signed else "white", linewidths=0.7, alpha=0.8)


def entropy_evolution(
    steps: ArrayLike, entropy: ArrayLike, events: Sequence[float] = (), title: str = "Attention entropy over training"
) -> Figure:
    """Entropy (of one or, `[steps, heads]`, several heads) over training, red dashed lines at the events' steps."""
    at, values = np.asarray(steps, dtype=np.float64), np.asarray(entropy, dtype=np.float64)
    if at.ndim != 1 or len(at) != len(values):
        raise SpecError(f"one row of entropies a step is needed, but got {at.shape} and {values.shape}")
    told = f"red dashed: {len(events)} events" if len(events) else "no events"
    drawn = canvas((4.6, 2.8), (1, 1), 1, (title, told))
    (axes,) = drawn.axes
    for i, column in enumerate(values.reshape(len(at), -1).T):
        axes.plot(at, column, lw=1.1, marker=".", ms=4, label=f"head {i}" if values.ndim > 1 else None)
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
        _picture(axes, x[i])
        if i < len(words):
            axes.set_xlabel(words[i], fontsize=SMALL - 1, color=INK, labelpad=2)
    return drawn.figure


def made_over(
    images: Mapping[str, ArrayLike], words: Sequence[str], title: str = "What drives the units", told: str = ""
) -> Figure:
    """A row a checkpoint, by name, and a column a unit, in `words`: images [units, C, H, W], each on its own scale."""
    found = {name: np.asarray(x, dtype=np.float64) for name, x in images.items()}
    if not found or any(x.ndim != 4 or x.shape[1] not in (1, 3) or len(x) != len(words) for x in found.values()):
        raise SpecError(
            f"{len(words)} images of 1 or 3 channels a checkpoint, but got {[x.shape for x in found.values()]}"
        )
    n = len(words)
    drawn = canvas((0.85 * n + 0.9, 0.95 * len(found)), (len(found), n), n * len(found), (title, told))
    for row, (name, x) in enumerate(found.items()):
        for i, axes in enumerate(drawn.axes[row * n : (row + 1) * n]):
            _picture(axes, x[i])
            if row == 0:
                axes.set_title(words[i], fontsize=SMALL - 1, color=INK, pad=2)
        drawn.axes[row * n].set_ylabel(name.replace(" (", "\n("), fontsize=SMALL, color=INK)
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


def _picture(axes: Axes, image: Floats) -> None:
    """One image of one or three channels on its own scale."""
    low, high = float(image.min()), float(image.max())
    shown = (image - low) / (high - low or 1.0)
    if len(shown) == 1:
        _image(axes, shown[0], colours="gray")
    else:
        axes.imshow(shown.transpose(1, 2, 0), interpolation="nearest")
        axes.set(xticks=[], yticks=[])


def _mosaic(kernels: Floats) -> Floats:
    """Kernels [n, h, w] on one sheet, a NaN line between them."""
    n, h, w = kernels.shape
    columns = math.ceil(math.sqrt(n))
    sheet = np.full((math.ceil(n / columns) * (h + 1) - 1, columns * (w + 1) - 1), np.nan)
    for i, kernel in enumerate(kernels):
        top, left = (i // columns) * (h + 1), (i % columns) * (w + 1)
        sheet[top : top + h, left : left + w] = kernel
    return sheet


def _scale(values: Floats) -> tuple[str, tuple[float, float]]:
    """Colours and their ends, which 1 % of the values lie beyond: white at 0 where there are both signs."""
    if not values.size:
        return "viridis", (0.0, 1.0)
    low, high = (float(v) for v in np.quantile(values, (0.005, 0.995)))
    if low < -0.05 * abs(high):
        most = max(-low, high) or 1.0
        return "RdBu_r", (-most, most)
    return "viridis", (min(low, 0.0), high if high > low else low + 1.0)


def _bar(figure: Figure, image: Any, axes: Sequence[Axes], label: str) -> None:
    bar = figure.colorbar(image, ax=list(axes), shrink=0.85, pad=0.02)
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label(label, fontsize=SMALL, color=INK)


def _frameless(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)


def _named(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=NORMAL, color=INK)
    axes.set_ylabel(y, fontsize=NORMAL, color=INK)
