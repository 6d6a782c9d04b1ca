"""Activations by name, from modules registered one by one: the founding documents' interface to `capture`."""

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.measurement.capture import first_tensor


class ActivationCapture:
    """Keeps the last output of each registered module, detached, under a name of the user's choice.

    `activations[name]` is there after a forward pass. Use it as a context manager, or call `remove_hooks` at the end.
    To measure layers of a training loop use `HighFrequencyTracker`, which copes with what overwrites them.
    """

    def __init__(self) -> None:
        self.activations: dict[str, Tensor] = {}
        self._handles: dict[str, RemovableHandle] = {}

    def register_layer(self, name: str, module: nn.Module) -> None:
        """Records `module` under `name`; SpecError where the name is taken."""
        if name in self._handles:
            raise SpecError(f"layer '{name}' is registered already: choose another name or call remove_hooks()")

        def hook(_module: nn.Module, _args: object, output: object) -> None:
            # A copy: an in-place ReLU behind the layer would overwrite what was kept.
            self.activations[name] = first_tensor(output, name).detach().clone()

        self._handles[name] = module.register_forward_hook(hook)

    def register_model(self, model: nn.Module, paths: list[str]) -> None:
        """Records modules of `model` under their paths; SpecError for a path that it has not."""
        modules = dict(model.named_modules())
        for path in paths:
            if path not in modules:
                raise SpecError(f"{type(model).__name__} has no module '{path}'{did_you_mean(path, modules)}")
            self.register_layer(path, modules[path])

    def remove_hooks(self) -> None:
        """Takes all hooks off; what was recorded stays."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> "ActivationCapture":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove_hooks()
