"""What of an input a decision rests on: saliency, integrated gradients and Grad-CAM, computed by Captum.

Simonyan et al. (arXiv:1312.6034), Sundararajan et al. (arXiv:1703.01365), Selvaraju et al. (arXiv:1610.02391).
"""

from types import ModuleType

import torch
from torch import Tensor, nn

from ndt_ray.errors import SpecError
from ndt_ray.measurement.capture import evaluating


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
