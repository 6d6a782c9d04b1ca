"""Pictures of a trained network at the checkpoints of a moment, from one forward pass of the probe a checkpoint."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ndt_ray.analysis.mechanisms import attention as heads
from ndt_ray.analysis.mechanisms.clear import clearest
from ndt_ray.analysis.mechanisms.filters import filter_similarity
from ndt_ray.errors import DataError, NdtError, SpecError, did_you_mean
from ndt_ray.figures import attributions, looking
from ndt_ray.figures.album import Album
from ndt_ray.figures.moments import Moment

if TYPE_CHECKING:
    from ndt_ray.analysis.mechanisms.context import ProbeContext
    from ndt_ray.analysis.mechanisms.seeing.attribution import Decisions

Floats = NDArray[np.float64]
MOST_CLASSES = 10
"""Columns of a figure of class means."""
MOST_LAYERS = 3
"""Drawn where no layer is asked for: the first, the last, and those evenly between."""
MOST_FEATURES = 256
"""Rows of a heat map; wider layers are drawn by as many features, evenly chosen."""
EXAMPLES = 4
"""Images of the probe beside a made one."""
ASCENT = 128
"""Steps of gradient ascent for images that no table holds: as the analysis `features`."""
FILTERS, ATTENTION, ACTIVATIONS, CLASSES, IMAGES = (
    "Filters", "Attention", "Activations", "Class means", "Images that drive units",
)  # fmt: skip


@dataclass
class Look:
    """What is drawn of one network."""

    step: int
    weights: dict[str, Floats] = field(default_factory=dict)
    attention: dict[str, Floats] = field(default_factory=dict)
    """[heads, queries, keys], mean over stimuli."""
    entropy: dict[str, Floats] = field(default_factory=dict)
    """[heads], nats."""
    units: dict[str, Floats] = field(default_factory=dict)
    """[stimuli, units]: mean over positions or tokens."""
    classes: dict[str, Floats] = field(default_factory=dict)
    """[classes, height, width]."""
    made: dict[str, Any] = field(default_factory=dict)
    """Images that drive units most, by layer: what `maximise` gives."""
    decisions: "Decisions | str" = "its stimuli are no images: there is no picture of what in them counts"
    """What the answers to a few clear images rest on, or why there is nothing."""


@dataclass(frozen=True)
class Drawn:
    """What a moment's pictures have in common: its networks, the probe, and the layers that are drawn."""

    moment: Moment
    looks: Mapping[str, Look]
    """By word (before, during, after), in order of steps; without checkpoints that cannot be read."""
    layers: Sequence[str]
    kinds: Mapping[str, str]
    labels: NDArray[np.int64]
    inputs: Any
    clear: Mapping[int, NDArray[np.int64]]
    """Which stimuli are a class's clear ones, chosen by the last of the networks."""
    image: bool

    def titled(self, name: str) -> str:
        return f"step {self.looks[name].step:,} ({name})"


def draw(
    album: Album,
    moment: Moment,
    contexts: Callable[[str, int], "ProbeContext"],
    tables: Mapping[str, pd.DataFrame],
    *,
    layers: Sequence[str] = (),
    units: int = 8,
) -> None:
    """All pictures of a moment; what an architecture does not have, or cannot be read, is left out with its reason.

    `tables`: rows of attention_metrics, features and events of the sweep, any of them empty. SpecError for a layer that
    does not exist.
    """
    seen = _looked(album, moment, contexts, tables, layers, units)
    if seen is None:
        return
    _filters(album, seen)
    _attention(album, seen)
    _entropy(album, seen, tables["attention_metrics"], tables["events"])
    _activations(album, seen)
    _classes(album, seen)
    _images(album, seen, tables["features"], units)
    _attributions(album, seen)


def _looked(
    album: Album,
    moment: Moment,
    contexts: Callable[[str, int], "ProbeContext"],
    tables: Mapping[str, pd.DataFrame],
    wanted: Sequence[str],
    units: int,
) -> Drawn | None:
    looks: dict[str, Look] = {}
    first: Any = None
    layers: list[str] = []
    clear: dict[int, NDArray[np.int64]] = {}
    for name, step in reversed(list(moment.steps.items())):  # the last first: it says which stimuli are clear
        try:
            context = contexts(moment.trial, step)
        except NdtError as error:
            album.skip("Networks", f"{moment.cell}, trial {moment.trial[:12]}, step {step:,} ({name})", str(error))
            if isinstance(error, DataError):  # no step of this trial has its data set
                return None
            continue
        if first is None:
            first, layers = context, _layers(album, moment, context, wanted)
            clear = clearest(context.logits, context.labels)
        looks[name] = look(context, layers, clear)
        if context.kind == "image":
            looks[name].decisions = _decisions(context, clear)
        if context.kind == "image" and units:
            _make(looks[name], context, moment, layers[:1], tables["features"], units)
    if first is None:
        return None
    kinds = {layer.path: layer.kind for layer in first.layers}
    ordered = dict(reversed(looks.items()))
    return Drawn(moment, ordered, layers, kinds, first.labels, first.inputs.numpy(), clear, first.kind == "image")


def _layers(album: Album, moment: Moment, context: "ProbeContext", wanted: Sequence[str]) -> list[str]:
    """Those asked for, else the event's, else a few along the network; the first is the one images are made for."""
    known = [layer.path for layer in context.layers]
    if wanted:
        for path in set(wanted) - set(known):
            album.skip(ACTIVATIONS, f"{moment.cell}: {path}", f"it has no such layer{did_you_mean(path, known)}")
        return [path for path in wanted if path in known]
    if moment.layer in known:
        return [str(moment.layer)]
    places = np.unique(np.linspace(0, len(known) - 1, min(MOST_LAYERS, len(known))).round().astype(int))
    chosen = [known[i] for i in places]
    if left := [path for path in known if path not in chosen]:
        album.skip(
            ACTIVATIONS, f"{moment.cell}: {', '.join(left)}", "a few layers stand for all: --layer PATH draws one"
        )
    return chosen


def look(context: "ProbeContext", layers: Sequence[str], clear: Mapping[int, NDArray[np.int64]]) -> Look:
    """What is drawn of a network, from its one forward pass."""
    found = Look(context.step)
    for path in layers:
        weight = context.weight(path)
        if weight is not None:
            found.weights[path] = weight
        found.units[path] = context.stimuli(path)
        found.classes[path] = class_means(context.activations(path), context.layer(path).kind, clear)
    ids = context.inputs.numpy() if context.kind != "image" else None
    for path, pattern in context.attention.items():
        found.attention[path] = pattern.mean(0, dtype=np.float64)
        found.entropy[path] = np.asarray(heads.summary(pattern, ids, context.padding)["attention_entropy"][0])
    return found


def class_means(values: NDArray[np.float32], kind: str, clear: Mapping[int, NDArray[np.int64]]) -> Floats:
    """[classes, height, width]: of a convolution where in the image its channels answer (their mean positive part), of
    tokens tokens × features, of units all of them in reading order; NaN for a class without clear stimuli."""
    maps = []
    for own in list(clear.values())[:MOST_CLASSES]:
        chosen = values[own].astype(np.float64)
        if kind == "positions" and values.ndim == 4:
            chosen = np.maximum(chosen, 0).mean(1)
        elif chosen.ndim == 2:
            side = math.ceil(math.sqrt(chosen.shape[1]))
            tall = math.ceil(chosen.shape[1] / side)
            full = np.full((len(chosen), tall * side), np.nan)
            full[:, : chosen.shape[1]] = chosen
            chosen = full.reshape(len(chosen), tall, side)
        maps.append(chosen.mean(0) if len(chosen) else np.full(chosen.shape[1:], np.nan))
    return np.stack(maps)


def _filters(album: Album, seen: Drawn) -> None:
    for path in seen.layers:
        if not album.room(FILTERS):
            continue
        weights = {name: lk.weights[path] for name, lk in seen.looks.items() if path in lk.weights}
        if not weights:
            album.skip(FILTERS, f"{seen.moment.cell}: {path}", "it has no weight matrix")
            continue
        kernels = {seen.titled(n): w for n, w in weights.items() if w.ndim == 4 and min(w.shape[2:]) > 1}
        cosines = {seen.titled(n): filter_similarity(w) for n, w in weights.items()}
        what = "Filters and their cosines" if kernels else "Cosines of the units' incoming weights"
        made = looking.filters_over(kernels, cosines, f"{what}: {path}", seen.moment.words)
        caption = f"{what}, layer {path}: {', '.join(seen.looks)}. Cosines are of all pairs of rows that are not zero."
        album.figure(FILTERS, f"{seen.moment.name}/filters_{path}", made, caption, seen.moment.shows)


def _attention(album: Album, seen: Drawn) -> None:
    paths = list(next(iter(seen.looks.values())).attention)
    if not paths:
        album.skip(ATTENTION, seen.moment.cell, "this architecture has no attention")
    for path in _few(album, ATTENTION, seen.moment, paths):
        if album.room(ATTENTION):
            patterns = {seen.titled(name): lk.attention[path] for name, lk in seen.looks.items()}
            told = f"{seen.moment.words}; query down, key across, mean over {len(seen.labels)} stimuli"
            made = looking.attention_over(patterns, f"Attention, head by head: {path}", told)
            caption = (
                f"Attention patterns of {path}, a column a head; mean over {len(seen.labels)} stimuli of the probe."
            )
            album.figure(ATTENTION, f"{seen.moment.name}/attention_{path}", made, caption, seen.moment.shows)


def _few(album: Album, section: str, moment: Moment, paths: Sequence[str]) -> list[str]:
    """Modules in the block of the event, or a few along the network."""
    own = [p for p in paths if moment.layer is not None and moment.layer.startswith(p.rpartition(".")[0] + ".")]
    if own or len(paths) <= MOST_LAYERS:
        return own or list(paths)
    places = np.unique(np.linspace(0, len(paths) - 1, MOST_LAYERS).round().astype(int))
    left = [p for i, p in enumerate(paths) if i not in places]
    album.skip(section, f"{moment.cell}: {', '.join(left)}", "a few layers stand for all of this network")
    return [paths[i] for i in places]


def _entropy(album: Album, seen: Drawn, metrics: pd.DataFrame, events: pd.DataFrame) -> None:
    """Over all checkpoints where `attention_metrics` has them, else over those of the moment."""
    trial = seen.moment.trial
    at = events[(events["trial_id"] == trial) & events["significant"].astype(bool)] if len(events) else events
    steps = sorted(set(at["step_location"].fillna(at["step_before"]).astype(float))) if len(at) else []
    if seen.moment.event is not None and not steps:
        steps = [sum(seen.moment.event) / 2]
    for path in _few(album, ATTENTION, seen.moment, list(next(iter(seen.looks.values())).attention)):
        name = f"{seen.moment.name}/entropy_{path}"
        if not album.room(ATTENTION):
            continue
        rows = metrics[metrics["trial_id"] == trial] if len(metrics) else metrics
        rows = rows[(rows["layer"] == path) & (rows["metric"] == "attention_entropy")] if len(rows) else rows
        rows = rows[rows["part"] != "*"] if len(rows) else rows
        if len(rows):
            wide = rows.pivot(index="step", columns="part", values="value").sort_index()
            where, values, source = list(wide.index), wide.to_numpy(np.float64), "table attention_metrics"
        else:
            where = [lk.step for lk in seen.looks.values()]
            values = np.stack([lk.entropy[path] for lk in seen.looks.values()])
            source = f"{len(where)} checkpoints only; {album.analyze('attention')} gives all"
        made = looking.entropy_evolution(where, values, steps, f"Attention entropy: {path}")
        words = "events" if len(at) else "the candidate" if steps else "no events"
        caption = f"Entropy of each head of {path} over training (nats; {source}). Red dashed: {words}."
        album.figure(
            ATTENTION,
            name,
            made,
            caption,
            f"{seen.moment.cell}, trial {trial[:12]}, steps {where[0]:,} to {where[-1]:,}",
        )


def _activations(album: Album, seen: Drawn) -> None:
    for path in seen.layers:
        if album.room(ACTIVATIONS):
            width = next(iter(seen.looks.values())).units[path].shape[1]
            kept = np.unique(np.linspace(0, width - 1, min(width, MOST_FEATURES)).round().astype(int))
            values = {seen.titled(name): lk.units[path][:, kept] for name, lk in seen.looks.items()}
            mean = {"positions": ", mean over positions", "tokens": ", mean over tokens"}.get(seen.kinds[path], "")
            told = f"{len(kept)} of {width} features × {len(seen.labels)} samples{mean}; {seen.moment.words}"
            made = looking.activations_over(values, seen.labels, f"Activations: {path}", told)
            caption = f"Activations of {path}, features × samples of the probe, ordered by class{mean}."
            album.figure(ACTIVATIONS, f"{seen.moment.name}/activations_{path}", made, caption, seen.moment.shows)


def _classes(album: Album, seen: Drawn) -> None:
    if not seen.image:
        album.skip(CLASSES, seen.moment.cell, "its stimuli are no images: there are no clear images of a class")
        return
    classes = list(seen.clear)[:MOST_CLASSES]
    counts = [len(seen.clear[c]) for c in classes]
    if len(seen.clear) > len(classes):
        album.skip(
            CLASSES, f"{seen.moment.cell}: {len(seen.clear) - len(classes)} classes", f"{MOST_CLASSES} are drawn"
        )
    if none := [str(c) for c in classes if not len(seen.clear[c])]:
        why = "no image of the probe is recognised by the last of these networks"
        album.skip(CLASSES, f"{seen.moment.cell}, trial {seen.moment.trial[:12]}: class {', '.join(none)}", why)
    for path in seen.layers:
        if not album.room(CLASSES) or not any(counts):
            continue
        maps = {lk.step: lk.classes[path] for lk in seen.looks.values()}
        kind = seen.kinds[path]
        what = {"positions": "where its channels answer", "tokens": "tokens × features"}.get(kind, "units, row by row")
        axes = {"tokens": ("feature", "token")}.get(kind, ())
        number = f"{min(counts)}-{max(counts)}" if min(counts) < max(counts) else str(max(counts))
        told = f"{what}; mean of {number} clear images a class (correct, most confident)"
        made = looking.class_maps(maps, classes, f"Class means: {path}", told, axes)
        caption = f"Mean activation of {path} for each class, {told}; the same images at every step."
        album.figure(CLASSES, f"{seen.moment.name}/classes_{path}", made, caption, seen.moment.shows)


# -- what decisions rest on --------------------------------------------------------------------------------------------


def _decisions(context: "ProbeContext", clear: Mapping[int, NDArray[np.int64]]) -> "Decisions | str":
    from ndt_ray.analysis.mechanisms.seeing.attribution import decisions

    which = np.array(list(attributions.chosen(clear).values()), dtype=np.int64)
    if not len(which):
        return "no image of the probe is recognised by the last of these networks"
    try:
        return decisions(context, which)
    except SpecError as error:  # without Captum
        return str(error)


def _attributions(album: Album, seen: Drawn) -> None:
    found = {}
    for name, lk in seen.looks.items():
        if isinstance(lk.decisions, str):
            album.skip(attributions.SECTION, seen.moment.cell, lk.decisions)
            return
        found[seen.titled(name)] = lk.decisions
    attributions.draw(album, seen.moment, found, seen.inputs, seen.clear)


# -- images that drive units -------------------------------------------------------------------------------------------


def _known(features: pd.DataFrame, trial: str, step: int, path: str) -> pd.DataFrame:
    if features.empty:
        return features
    own = (features["trial_id"] == trial) & (features["step"] == step) & (features["layer"] == path)
    return features[own & features["flag"].isna()].sort_values("unit")


def _make(
    found: Look, context: "ProbeContext", moment: Moment, layers: Sequence[str], features: pd.DataFrame, units: int
) -> None:
    """Images of the target layer at this checkpoint where `features` has none: made now, while the network is here."""
    from ndt_ray.analysis.mechanisms.seeing.ascent import chosen_units, made_images, responses_of

    for path in layers:
        if len(_known(features, moment.trial, context.step, path)):
            continue
        which = chosen_units(moment.trial, path, found.units[path].shape[1], units)
        made = made_images(context, path, which, responses_of(context, path), steps=ASCENT, jitter=1)
        found.made[path] = (which, made.images, made.activations)


def _images(album: Album, seen: Drawn, features: pd.DataFrame, units: int) -> None:
    """`neuron_{i}_step_{c}`: the made image and the examples that drive the unit most; an overview a layer."""
    if not seen.layers:
        return
    if not seen.image or not units:
        why = "its stimuli are no images: nothing to ascend" if units else "--units 0"
        album.skip(IMAGES, seen.moment.cell, why)
        return
    path = seen.layers[0]
    sheets, source = {}, "made for this figure"
    for name, lk in seen.looks.items():
        rows = _known(features, seen.moment.trial, lk.step, path).head(units)
        if len(rows):
            source = "table features"
            images = np.stack([np.reshape(r.image, tuple(r.shape)) for r in rows.itertuples()])
            which, reached = [int(u) for u in rows["unit"]], rows["activation"].to_numpy(np.float64)
        else:
            which, images, reached = lk.made[path]
        sheets[name] = (which, images)
        for i, unit in enumerate(which):
            if not album.room(IMAGES):
                continue
            answers = lk.units[path][:, unit]
            best = np.argsort(-answers, kind="stable")[:EXAMPLES]
            words = [f"made: {reached[i]:.2f}", *(f"class {seen.labels[b]}: {answers[b]:.2f}" for b in best)]
            title = f"{path}, unit {unit}, step {lk.step:,}"
            told = f"made by gradient ascent (red), and the {EXAMPLES} images of the probe that drive it most"
            shown = looking.neuron(images[i], [seen.inputs[b] for b in best], words, title, told)
            caption = f"Unit {unit} of {path} at step {lk.step:,} ({name}): made image ({source}) and best examples."
            where = f"{seen.moment.name}/{path}/neuron_{unit}_step_{lk.step}"
            album.figure(IMAGES, where, shown, caption, f"{seen.moment.cell}, trial {seen.moment.trial[:12]}", dpi=110)

    if sheets and album.room(IMAGES):
        titles = {seen.titled(name): images for name, (_, images) in sheets.items()}
        which = next(iter(sheets.values()))[0]
        made = looking.made_over(
            titles, [f"unit {u}" for u in which], f"What drives the units: {path}", seen.moment.words
        )
        caption = f"Images made by gradient ascent for {len(which)} units of {path} ({source}), a row a checkpoint."
        album.figure(IMAGES, f"{seen.moment.name}/{path}/neurons", made, caption, seen.moment.shows)
