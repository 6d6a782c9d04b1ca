"""Captured activations as files: one a model, task and layer, with what they are beside them as JSON.

A file holds the rows of all tokens, text after text, and how many each text has. Two files pair where they are of the
same texts in the same order - whatever the models' tokens and widths: row m of text t is the token at the same share of
the text's length.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ndt_ray.analysis.mechanisms.context import Layer
from ndt_ray.analysis.mechanisms.sae.activations import Rows, places
from ndt_ray.analysis.mechanisms.sae.networks import Activations, Sampling
from ndt_ray.analysis.nulls import generator
from ndt_ray.errors import DataError, SpecError

HELD_OUT = 1 / 3
"""Share of the texts that dictionaries are judged by, at most."""
FEWEST = 6
"""Texts below which nothing can be held out."""


@dataclass(frozen=True)
class Captured:
    """One file: rows [tokens, d] of `lengths` [texts] tokens each."""

    path: Path
    model: str
    task: str
    layer: Layer
    """Its name, its number and `tokens`."""
    rows: Rows
    lengths: NDArray[np.int64]
    texts: str
    """Digest of the texts."""

    @property
    def network(self) -> str:
        """The model and its task: what a trial is in a sweep."""
        return f"{self.model}:{self.task}" if self.task else self.model


def texts_digest(texts: Sequence[str]) -> str:
    """What tells lists of texts apart, 16 hex digits."""
    return hashlib.sha256("\x1e".join(texts).encode()).hexdigest()[:16]


def write_activations(
    folder: Path,
    model: str,
    layer: int,
    rows: Rows,
    lengths: Sequence[int],
    texts: str,
    *,
    task: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write the file of a layer, and its metadata beside it; SpecError where `lengths` are not those of the rows."""
    if rows.ndim != 2 or sum(lengths) != len(rows):
        raise SpecError(f"rows [tokens, d] of {sum(lengths)} tokens are needed, but got {list(rows.shape)}")
    folder.mkdir(parents=True, exist_ok=True)
    stem = "_".join(part.replace("/", "-") for part in (model, task, f"layer{layer}") if part)
    file = folder / f"{stem}.safetensors"
    arrays = {"activations": np.ascontiguousarray(rows, np.float32), "lengths": np.asarray(lengths, np.int64)}
    save_file(arrays, file)
    note = {"model": model, "task": task, "layer": layer, "shape": list(rows.shape), "texts": len(lengths)}
    note |= {"texts_digest": texts, **(metadata or {})}
    file.with_suffix(".json").write_text(json.dumps(note, indent=2, sort_keys=True) + "\n")
    return file


def read_activations(path: Path) -> Captured:
    """One file; DataError, saying which, where it or its metadata are missing, torn or disagree."""
    try:
        note = json.loads(path.with_suffix(".json").read_text())
        model, task, number = str(note["model"]), str(note["task"]), int(note["layer"])
        digest, shape = str(note["texts_digest"]), list(note["shape"])
        arrays = load_file(path)
        rows, lengths = arrays["activations"], arrays["lengths"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} holds no captured activations ({error}): write it with `ndt capture`") from error
    if list(rows.shape) != shape or rows.ndim != 2 or int(lengths.sum()) != len(rows):
        raise DataError(f"{path} is not what its metadata say ({list(rows.shape)}, then {shape}): capture it again")
    layer = Layer(f"layer{number}", number, "tokens")
    return Captured(path, model, task, layer, rows.astype(np.float32), lengths, digest)


def read_folder(folder: str | Path) -> list[Captured]:
    """All files of a folder, by model, task and layer; DataError where there are none or one is broken."""
    files = sorted(Path(folder).expanduser().glob("*.safetensors"))
    if not files:
        raise DataError(f"no captured activations in {folder}: `ndt capture MODEL --texts FILE -o {folder}` makes some")
    found = sorted((read_activations(file) for file in files), key=lambda c: (c.model, c.task, c.layer.index))
    seen: dict[tuple[str, str, int], Path] = {}
    for one in found:
        key = (one.model, one.task, one.layer.index)
        if key in seen:
            raise DataError(f"{one.path} and {seen[key]} are both layer {one.layer.index} of {one.network}")
        seen[key] = one.path
    return found


def sampled_rows(captured: Captured, sampling: Sampling) -> Activations:
    """Rows to fit and held out, [texts, per stimulus, d]: the same places of the same texts for files that pair.

    SpecError for fewer than six texts, or an empty one.
    """
    n = len(captured.lengths)
    if n < FEWEST or int(captured.lengths.min()) < 1:
        raise SpecError(f"{captured.path}: {FEWEST} texts or more are needed, none empty, but there are {n}")
    order = generator("captured texts", captured.texts).permutation(n)
    held = min(sampling.held_out, max(2, round(HELD_OUT * n)))
    parts = {"held out": np.sort(order[:held]), "fit": np.sort(order[held : held + sampling.stimuli])}
    starts = np.concatenate([[0], np.cumsum(captured.lengths)[:-1]])
    found: dict[str, Rows] = {}
    for name, texts in parts.items():
        where = places(len(texts), sampling.per_stimulus, name, captured.texts)[..., 0]
        at = starts[texts][:, None] + (where * captured.lengths[texts][:, None]).astype(np.int64)
        found[name] = captured.rows[at]
    return Activations(found["fit"], found["held out"], captured.texts)
