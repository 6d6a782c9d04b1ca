"""Which views a kind of layer has: how its activations may become a matrix. `measurement.views` makes the matrices."""

from collections.abc import Mapping

from ndt_ray.errors import SpecError, did_you_mean

VIEWS: dict[str, tuple[str, ...]] = {
    "units": ("units",),
    "positions": ("positions", "gap", "flat"),
    "tokens": ("tokens", "mean"),
}
"""By kind of layer; the first is the default.

`positions` [B, C, H, W]: positions as samples over channels, the average over them (`gap`), or all in one row (`flat`).
`tokens` [B, T, D]: tokens as samples, or the mean over them.
"""
Views = Mapping[str, str | tuple[str, ...]]
"""Views asked for by kind of layer: one, or several, of which the first is the layer's own."""


def view_of(kind: str, views: Views | None = None) -> str:
    """The view of a kind of layer: the one asked for in `views`, or the default; SpecError if unknown."""
    return views_of(kind, views)[0]


def views_of(kind: str, views: Views | None = None) -> tuple[str, ...]:
    """All that are asked for, the layer's own first."""
    if kind not in VIEWS:
        raise SpecError(f"unknown kind of layer '{kind}'{did_you_mean(kind, VIEWS)}")
    for asked in views or {}:
        if asked not in VIEWS:
            raise SpecError(f"measure.views: unknown kind of layer '{asked}'{did_you_mean(asked, VIEWS)}")
    said = (views or {}).get(kind, VIEWS[kind][0])
    found = (said,) if isinstance(said, str) else said
    for view in found:
        if view not in VIEWS[kind]:
            raise SpecError(f"measure.views.{kind}: unknown view '{view}'{did_you_mean(view, VIEWS[kind])}")
    return found
