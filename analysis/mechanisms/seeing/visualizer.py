"""`FeatureVisualizer`, as the founding paper draft names it: class activation maps, saliency, attention."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ndt_ray.analysis.mechanisms.seeing import attribution
from ndt_ray.analysis.mechanisms.seeing.maximise import Maximised, maximise
from ndt_ray.errors import SpecError
from ndt_ray.measurement.capture import evaluating
from ndt_ray.models.layers import SelfAttention

Floats = NDArray[np.float32]


class FeatureVisualizer:
    """Looks into one network; leaves its mode, parameters and gradients as they are.

    Targets of attributions are classes: one for all inputs, one each, or (None) what the network says.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def class_activation_map(
        self, layer: str, inputs: Tensor, targets: Any = None, relu: bool = True, upsampled: bool = False
    ) -> Floats:
        """Grad-CAM of a convolution, `[n, h, w]` of its maps, or of the inputs if `upsampled`."""
        chosen = self._targets(inputs, targets)
        return _array(attribution.grad_cam(self.model, layer, inputs, chosen, relu, upsampled)[:, 0])

    def saliency(self, inputs: Tensor, targets: Any = None) -> Floats:
        """|gradient| of the target's logit, in the shape of the inputs."""
        return _array(attribution.saliency(self.model, inputs, self._targets(inputs, targets)))

    def integrated_gradients(self, inputs: Tensor, targets: Any = None, steps: int = 50) -> Floats:
        """Attributions that sum to the change of the logit from an input of zeros, in the shape of the inputs."""
        chosen = self._targets(inputs, targets)
        return _array(attribution.integrated_gradients(self.model, inputs, chosen, steps=steps)[0])

    def attention(self, inputs: Tensor) -> dict[str, Floats]:
        """Attention patterns `[n, heads, queries, keys]` by module path; SpecError for a network without any."""
        found: dict[str, Floats] = {}
        handles = []
        for path, module in self.model.named_modules():
            if isinstance(module, SelfAttention):
                handles.append(module.pattern.register_forward_hook(_keeper(found, path)))
        if not handles:
            raise SpecError("this network has no attention whose pattern can be captured")
        try:
            with torch.no_grad(), evaluating(self.model):
                self.model(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def maximise(self, layer: str, units: Any, shape: Any, limits: tuple[float, float], **options: Any) -> Maximised:
        """Images that drive units most (see `maximise`)."""
        return maximise(self.model, layer, units, shape, limits, **options)

    def _targets(self, inputs: Tensor, targets: Any) -> Tensor:
        if targets is None:
            with torch.no_grad(), evaluating(self.model):
                said: Tensor = self.model(inputs)
            return said.argmax(-1)
        return torch.as_tensor(targets).expand(len(inputs))


def _keeper(found: dict[str, Floats], path: str) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        found[path] = _array(output)

    return hook


def _array(x: Tensor) -> Floats:
    values: Floats = x.detach().float().cpu().numpy()
    return values
