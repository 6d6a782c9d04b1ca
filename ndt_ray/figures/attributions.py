"""What a decision rests on, before, during and after: saliency, integrated gradients and Grad-CAM of clear images."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ndt_ray.figures import looking
from ndt_ray.figures.album import Album
from ndt_ray.figures.moments import Moment

if TYPE_CHECKING:
    from ndt_ray.analysis.mechanisms.seeing.attribution import Decisions

SECTION = "Attributions"
MOST_CLASSES = 3
"""Of each the clearest image is drawn: those at both ends and in the middle."""


def chosen(clear: Mapping[int, NDArray[np.int64]]) -> dict[int, int]:
    """The clearest stimulus of a few classes, of those that have any."""
    known = [label for label, own in clear.items() if len(own)]
    places = np.unique(np.linspace(0, len(known) - 1, min(MOST_CLASSES, len(known))).round().astype(int))
    return {known[i]: int(clear[known[i]][0]) for i in places}


def draw(
    album: Album,
    moment: Moment,
    found: Mapping[str, "Decisions"],
    inputs: NDArray[np.float32],
    clear: Mapping[int, NDArray[np.int64]],
) -> None:
    """A figure a class: its clearest image and what the networks of `found`, by name and in order, take it by.

    `found` is of the stimuli that `chosen` gives, in its order.
    """
    images = chosen(clear)
    if left := [str(label) for label in clear if label not in images]:
        album.skip(SECTION, f"{moment.cell}: class {', '.join(left)}", "a few classes stand for all")
    path = next(iter(found.values())).maps
    if path is None:
        album.skip(SECTION, f"{moment.cell}: Grad-CAM", "no layer gives maps: there is nothing to weigh by gradients")
    for i, (label, stimulus) in enumerate(images.items()):
        if not album.room(SECTION):
            continue
        rows = {
            f"{name.replace(' (', chr(10) + '(')}\np({label}) = {one.probability[i]:.3f}": _maps(one, i)
            for name, one in found.items()
        }
        title = f"What the answer “class {label}” rests on"
        made = looking.attributions_over(
            inputs[stimulus], rows, title, f"{moment.words}; each map on its own scale, with the image's outline"
        )
        cam = "" if path is None else f"; Grad-CAM of {path}, upsampled: where its channels speak for the class"
        caption = (
            f"The clearest image of class {label} (stimulus {stimulus} of the probe) and its logit: saliency, its "
            "gradient by pixel; integrated gradients from the darkest image, red for and blue against, whose sum is "
            f"the change of the logit{cam}."
        )
        album.figure(SECTION, f"{moment.name}/attributions_class_{label}", made, caption, moment.shows)


def _maps(found: "Decisions", i: int) -> dict[str, tuple[NDArray[np.float64], str]]:
    sum_, missed = float(found.integrated[i].sum()), float(found.missed[i])
    maps = {
        "saliency": (found.saliency[i], f"largest {found.saliency[i].max():.2g}"),
        "integrated gradients": (found.integrated[i], f"sum {sum_:.2f} of {sum_ - missed:.2f}"),
    }
    if found.cam is not None:
        most = float(found.cam[i].max())
        maps["Grad-CAM"] = (found.cam[i], f"largest {most:.2g}" if most else "0: nothing speaks for it")
    return maps
