"""Rows that dictionaries are trained on: the same places of the same stimuli in every layer, so that layers pair."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ndt_ray.analysis.mechanisms.sae.model import Saes
from ndt_ray.analysis.nulls import generator
from ndt_ray.errors import SpecError
from ndt_ray.measurement.capture import Capture, evaluating, first_tensor

Rows = NDArray[np.float32]

PIECE = 128
"""Stimuli of one forward pass: the widest convolution of cnn_deep then takes 50 MB."""


def places(n: int, per_stimulus: int, *key: str) -> NDArray[np.float64]:
    """Where to look in each stimulus, as shares of height and width, [n, per stimulus, 2]: equal for all layers."""
    return generator("sae places", *key).random((n, per_stimulus, 2))


def layer_rows(
    model: nn.Module, inputs: Tensor, layers: Mapping[str, str], where: NDArray[np.float64], padding: int | None = None
) -> dict[str, Rows]:
    """Activations [n, m, d] by layer, at the places [n, m, 2]; of `units` one row a stimulus.

    `layers`: path -> kind. `positions`: the place (height, width) in the layer's own grid. `tokens`: the place along
    the sequence, of ids that are not `padding` where the layer keeps the input's length.
    """
    parts: dict[str, list[Rows]] = {path: [] for path in layers}
    with torch.no_grad(), evaluating(model), Capture(model, dict(layers)) as seen:
        for start in range(0, len(inputs), PIECE):
            piece = inputs[start : start + PIECE]
            model(piece)
            at = where[start : start + PIECE]
            for path, found in seen.take()[0].items():
                parts[path].append(_at(found, layers[path], at, piece, padding).float().cpu().numpy())
    return {path: np.concatenate(found) for path, found in parts.items()}


def paired(one: Rows, other: Rows) -> tuple[Rows, Rows]:
    """Rows of two layers with one row repeated where a layer has only one a stimulus; SpecError where they differ."""
    if one.shape[0] != other.shape[0] or (one.shape[1] != other.shape[1] and 1 not in (one.shape[1], other.shape[1])):
        raise SpecError(f"rows of {one.shape[:2]} and {other.shape[:2]} do not pair")
    m = max(one.shape[1], other.shape[1])
    return _repeated(one, m), _repeated(other, m)


def spliced_loss(
    model: nn.Module,
    path: str,
    kind: str,
    change: Callable[[Tensor], Tensor],
    inputs: Tensor,
    labels: Tensor,
) -> float:
    """Loss (nats, mean) with a layer's output replaced, row by row [N, d] -> [N, d]; no gradient, eval mode."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        found = first_tensor(output, path)
        moved = found.movedim(1, -1) if kind == "positions" else found
        changed = change(moved.reshape(-1, moved.shape[-1])).reshape(moved.shape).to(found.dtype)
        return changed.movedim(-1, 1) if kind == "positions" else changed

    handle = model.get_submodule(path).register_forward_hook(hook)
    total = 0.0
    try:
        with torch.no_grad(), evaluating(model):
            for start in range(0, len(inputs), PIECE):
                logits = model(inputs[start : start + PIECE]).double()
                wanted = labels[start : start + PIECE]
                total += float(nn.functional.cross_entropy(logits, wanted, reduction="sum"))
    finally:
        handle.remove()
    return total / len(inputs)


def through(saes: Saes) -> Callable[[Tensor], Tensor]:
    """Rows [N, d] of a layer -> what the first dictionary makes of them."""

    def change(rows: Tensor) -> Tensor:
        one = saes.lanes([0])
        return (one.reconstruct(one.normalised(rows.float()[None])) * one.scale + one.mean)[0]

    return change


def _at(found: Tensor, kind: str, at: NDArray[np.float64], inputs: Tensor, padding: int | None) -> Tensor:
    """[n, …] -> [n, m, d]"""
    n = len(found)
    stimulus = torch.arange(n)[:, None]
    if kind == "units":
        return found[:, None, :]
    if kind == "positions":
        height, width = found.shape[-2:]
        y, x = (torch.from_numpy((at[..., i] * size).astype(np.int64)) for i, size in ((0, height), (1, width)))
        return found[stimulus, :, y, x]
    length = torch.full((n,), found.shape[1])
    if padding is not None and inputs.ndim == 2 and inputs.shape[1] == found.shape[1]:
        length = (inputs != padding).sum(1).clamp_min(1)
    return found[stimulus, (torch.from_numpy(at[..., 0]) * length[:, None]).long()]


def _repeated(rows: Rows, m: int) -> Rows:
    return rows if rows.shape[1] == m else np.repeat(rows, m, axis=1)
