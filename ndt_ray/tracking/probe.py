"""A fixed batch that is shown to any model again and again, in eval mode, leaving no trace in its training."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ndt_ray.errors import NdtError, SpecError
from ndt_ray.measurement.capture import first_tensor
from ndt_ray.measurement.evaluate import Scores, scores
from ndt_ray.tracking.watch import Seen, Watch, unnoticed


class Probe:
    """Inputs of one forward pass - a tensor, a tuple of positional ones, or a mapping of keyword ones - and labels.

    The first axis of the first tensor counts stimuli; `labels` [n] are class indices for logits [n, C]. SpecError
    where there is no tensor or their lengths differ.
    """

    def __init__(self, inputs: Any, labels: Tensor | None = None) -> None:
        self._inputs = _mapped(inputs, Tensor.detach)
        tensors = list(_tensors(self._inputs))
        if not tensors or tensors[0].ndim < 1 or not len(tensors[0]):
            raise SpecError(f"a probe is a tensor [n, ...], or a tuple or mapping of such, but got {_told(inputs)}")
        self.size = len(tensors[0])
        if labels is not None and labels.shape != (self.size,):
            raise SpecError(f"the probe has {self.size} stimuli, but its labels are {list(labels.shape)}")
        self.labels = None if labels is None else labels.detach().long().cpu()
        self.hash = _hash(tensors if self.labels is None else [*tensors, self.labels])

    def show(self, model: nn.Module, watch: Watch) -> tuple[Seen, Scores | None]:
        """One forward pass under `watch`, and loss and accuracy on it where there are labels."""
        watch.install(untraced=False)
        try:
            with unnoticed(model):
                output = self._forward(model)
                seen = watch.take()
        finally:
            watch.remove()
        return seen, self._scores(output)

    def rehearse(self, model: nn.Module, watch: Watch) -> None:
        """Show it before the training, where an error is of use: SpecError."""
        try:
            self.show(model, watch)
        except NdtError:
            raise
        except Exception as error:
            raise SpecError(
                f"the probe does not go through {type(model).__name__} (a tuple is positional inputs; labels are "
                f"probe_labels): {type(error).__name__}: {error}"
            ) from error

    def _forward(self, model: nn.Module) -> Any:
        inputs = self._placed(model)
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)

    def _placed(self, model: nn.Module) -> Any:
        """The inputs where the model is, floats in its precision; kept there, so that they move once."""
        weight = next(model.parameters(), None)
        if weight is None:
            return self._inputs

        def place(tensor: Tensor) -> Tensor:
            floats = tensor.is_floating_point() and weight.is_floating_point()
            return tensor.to(weight.device, weight.dtype if floats else None)

        self._inputs = _mapped(self._inputs, place)
        return self._inputs

    def _scores(self, output: Any) -> Scores | None:
        if self.labels is None:
            return None
        logits = first_tensor(output, "(output)")
        if logits.ndim != 2 or len(logits) != self.size:
            raise SpecError(
                f"probe labels need logits [{self.size}, classes], but the model gives {list(logits.shape)}"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= logits.shape[1]:
            raise SpecError(f"probe labels reach from {low} to {high}, but the model has {logits.shape[1]} classes")
        return scores(logits, self.labels, logits.shape[1])


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _mapped(part, function) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_mapped(part, function) for part in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _hash(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _told(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
