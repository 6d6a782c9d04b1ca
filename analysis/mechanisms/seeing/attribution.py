"""What of an input a decision rests on: saliency, integrated gradients and Grad-CAM, computed by Captum.

Simonyan et al. (arXiv:1312.6034), Sundararajan et al. (arXiv:1703.01365), Selvaraju et al. (arXiv:1610.02391).
"""

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ndt_ray.errors import SpecError
from ndt_ray.measurement.capture import evaluating

if TYPE_CHECKING:
    from ndt_ray.analysis.mechanisms.context import ProbeContext

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Decisions:
    """What a network's right answers to n images rest on; maps are `[n, height, width]` of the images."""

    probability: Floats
    """`[n]`, of the image's own class."""
    saliency: Floats
    """The largest over channels."""
    integrated: Floats
    """The sum over channels; from the darkest image of the probe's range."""
    missed: Floats
    """`[n]`: sum of the integrated gradients - change of the logit, which they ought to add up to."""
    maps: str | None
    """The last layer that gives maps, None without one."""
    cam: Floats | None
    """Grad-CAM of that layer, upsampled."""


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError:
        raise SpecError("attributions need Captum: pip install -e '.[attribution]'") from None
    found: ModuleType = captum.attr
    return found


def saliency(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """|d logit of the target / d input|, in the shape of the inputs `[n, ...]`; targets int64 [n]."""
    with evaluating(model):
        found: Tensor = _captum().Saliency(model).attribute(inputs.clone().requires_grad_(), target=targets)
    return found.detach()


def integrated_gradients(
    model: nn.Module, inputs: Tensor, targets: Tensor, baseline: Tensor | None = None, steps: int = 50
) -> tuple[Tensor, Tensor]:
    """Attributions in the shape of the inputs, and how far their sum misses the change of the logit, `[n]`.

    From `baseline` (zeros by default) along a straight line, by Gauss-Legendre quadrature.
    """
    base = torch.zeros_like(inputs) if baseline is None else baseline.expand_as(inputs)
    with evaluating(model):
        found, delta = (
            _captum()
            .IntegratedGradients(model)
            .attribute(inputs, baselines=base, target=targets, n_steps=steps, return_convergence_delta=True)
        )
    return found.detach(), delta.detach()


def grad_cam(
    model: nn.Module, path: str, inputs: Tensor, targets: Tensor, relu: bool = True, upsampled: bool = False
) -> Tensor:
    """Channel maps of the module at `path` weighted by their mean gradient, `[n, 1, h, w]`; `relu`: positive part only.

    `upsampled`: bilinearly to the size of the inputs, to be laid over them. SpecError where the module gives no maps.
    """
    module = model.get_submodule(path)
    with evaluating(model):
        cam = _captum().LayerGradCam(model, module)
        found: Tensor = cam.attribute(inputs, target=targets, relu_attributions=relu)
    if found.ndim != 4:
        raise SpecError(f"Grad-CAM needs maps [n, channels, h, w], but '{path}' gives {found.ndim} axes")
    found = found.detach()
    if upsampled:
        found = _captum().LayerAttribution.interpolate(found, tuple(inputs.shape[-2:]), interpolate_mode="bilinear")
    return found


def decisions(context: "ProbeContext", which: NDArray[np.int64]) -> Decisions:
    """Saliency, integrated gradients and Grad-CAM of the stimuli `which` of an image probe, for their own classes.

    Grad-CAM is of the last tracked layer whose maps are wider than one position. SpecError without Captum.
    """
    chosen = torch.from_numpy(which)
    images, targets = context.inputs[chosen], torch.from_numpy(context.labels)[chosen]
    logits = context.logits[which]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    darkest = context.inputs.amin((0, 2, 3), keepdim=True)
    integrated, missed = integrated_gradients(context.model, images, targets, baseline=darkest)
    wide = [x.path for x in context.layers if x.kind == "positions" and min(context.activations(x.path).shape[2:]) > 1]
    path = wide[-1] if wide else None
    cam = None if path is None else grad_cam(context.model, path, images, targets, upsampled=True)
    return Decisions(
        probability=(shares / shares.sum(1, keepdims=True))[np.arange(len(which)), targets.numpy()],
        saliency=_floats(saliency(context.model, images, targets).amax(1)),
        integrated=_floats(integrated.sum(1)),
        missed=_floats(missed),
        maps=path,
        cam=None if cam is None else _floats(cam[:, 0]),
    )


def _floats(values: Tensor) -> Floats:
    return np.asarray(values.double().numpy())
