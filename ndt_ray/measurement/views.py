"""How a layer's activations become a matrix, by its kind and view (`layer_views`)."""

from torch import Tensor

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.layer_views import VIEWS


def kind_of(activations: Tensor) -> str:
    """The kind that activations `[n, ...]` look like: 2 axes units, 3 tokens, 4 and more positions."""
    if activations.ndim < 2:
        raise SpecError(
            f"activations need a first axis of stimuli and one of features, but got {tuple(activations.shape)}"
        )
    return {2: "units", 3: "tokens"}.get(activations.ndim, "positions")


def by_stimulus(activations: Tensor, kind: str, view: str, lanes: int = 0) -> Tensor:
    """Activations `[n, ...]` as `[n, rows a stimulus, features]`, without a copy where a strided view will do.

    With `lanes` = 1 there is an axis of lanes in front, of both.
    """
    x, axes = activations, activations.ndim - lanes
    if not x.is_floating_point():
        raise SpecError(f"only real floating-point activations can be measured, but got {x.dtype}")
    if not {"units": axes == 2, "tokens": axes == 3}.get(kind, axes >= 3):
        raise SpecError(f"activations of kind '{kind}' cannot have shape {tuple(x.shape[lanes:])}")
    match kind, view:
        case ("units", "units"):
            return x.unsqueeze(-2)
        case ("tokens", "tokens"):
            return x
        case ("tokens", "mean"):
            return x.double().mean(-2).unsqueeze(-2)
        case ("positions", "positions"):
            return x.flatten(lanes + 2).mT
        case ("positions", "gap"):
            return x.flatten(lanes + 2).double().mean(-1).unsqueeze(-2)
        case ("positions", "flat"):
            if x.stride(lanes + 1) == 1:  # channels last: features in the order of memory need no copy
                x = x.movedim(lanes + 1, -1)
            return x.flatten(lanes + 1).unsqueeze(-2)
    raise SpecError(f"unknown view '{view}' of a layer of kind '{kind}'{did_you_mean(view, VIEWS.get(kind, ()))}")


def as_matrix(activations: Tensor, kind: str, view: str) -> tuple[Tensor, int]:
    """Activations `[n, ...]` -> (matrix `[rows, f]`, rows a stimulus).

    `units` [n, F]: as they are. `positions` [n, C, *space]: each position a row of C features; `gap` the mean over
    positions; `flat` all of it as features, in the order they have in memory. `tokens` [n, T, D]: each token a row;
    `mean` the mean over tokens.
    """
    rows = by_stimulus(activations, kind, view)
    return rows.reshape(-1, rows.shape[-1]), rows.shape[1]
