"""What the layers of any `nn.Module` put out in a forward pass: hooks by module path, gone when the context ends."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ndt_ray.errors import NdtError, SpecError, did_you_mean

AUTO = "auto"
"""Kind of a layer whose output says it only when it runs: a Linear gives units or tokens (`views.kind_of`)."""


class Capture:
    """Records the outputs (and inputs, on request) of layers while it is open: `with Capture(model) as seen`.

    `layers`: path -> kind; or paths and glob patterns of `discover(model)`; or None for all of these. A module that
    runs twice in one forward pass is recorded at its last call. What is recorded is detached and keeps its values
    even where a later operation works in place (`ReLU(inplace=True)`): the first pass copies everything and notices
    which tensors were overwritten; from then on only those are copied (a copy costs 13–18 % of a layer's Gram matrix).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, str] | Sequence[str] | None = None,
        *,
        inputs: Collection[str] = (),
    ) -> None:
        self.layers = select(model, layers)
        self.lost: set[str] = set()
        """Layers of the last `take` that were overwritten before they could be copied; they are copied from now on."""
        self._modules = {path: _module(model, path) for path in {**self.layers, **dict.fromkeys(inputs)}}
        self._with_input = frozenset(inputs)
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._untouched: set[tuple[str, str]] = set()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Capture":
        for path, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(path), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def take(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(outputs, inputs) by path, in the order of `layers`, since the last `take`; NdtError for a layer that did
        not run."""
        found = {key: seen.settle() for key, seen in self._seen.items()}
        first = {key for key, seen in self._seen.items() if seen.copied}
        self._seen.clear()
        kept = {key: tensor for key, (tensor, _) in found.items()}
        changed = {key for key, (_, overwritten) in found.items() if overwritten}
        self._untouched |= first - changed
        self.lost = {path for path, what in changed - first}
        self._untouched -= changed
        silent = [path for path in self._modules if not any(path == seen for seen, _ in kept)]
        if silent:
            raise NdtError(
                f"no output of {', '.join(map(repr, silent))} in this forward pass: the model does not call these "
                "modules (nn.MultiheadAttention never calls its out_proj); leave them out of the layers"
            )
        outputs = {path: kept[path, "out"] for path in self.layers if path not in self.lost}
        return outputs, {path: kept[path, "in"] for path in self._with_input if path not in self.lost}

    def _hook(self, path: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if path in self.layers:
                self._keep((path, "out"), first_tensor(output, path))
            if path in self._with_input:
                self._keep((path, "in"), first_tensor((args, kwargs), path))

        return hook

    def _keep(self, key: tuple[str, str], tensor: Tensor) -> None:
        tensor = tensor.detach()
        # Inference tensors carry no version, so that an overwrite would go unnoticed.
        copy = tensor.is_inference() or key not in self._untouched
        version = 0 if tensor.is_inference() else tensor._version
        self._seen[key] = _Seen(tensor, tensor.clone() if copy else None, version)


@dataclasses.dataclass(frozen=True)
class _Seen:
    original: Tensor
    copy: Tensor | None
    version: int

    @property
    def copied(self) -> bool:
        return self.copy is not None

    def settle(self) -> tuple[Tensor, bool]:
        """What was recorded, and whether the original has been overwritten since."""
        overwritten = self.original.is_inference() or self.original._version != self.version
        return (self.original if self.copy is None else self.copy), overwritten


def discover(model: nn.Module) -> dict[str, str]:
    """Layers worth measuring of any module: path -> kind, in the order of the module tree.

    A module with `tracked` says itself. Else every Linear, every convolution, and every MultiheadAttention (whose
    inner Linear is never called).
    """
    tracked = getattr(model, "tracked", None)
    if isinstance(tracked, Mapping):
        return {str(path): str(kind) for path, kind in tracked.items()}
    found: dict[str, str] = {}
    attention: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{outer}." if outer else "") for outer in attention):
            continue
        if isinstance(module, nn.MultiheadAttention):
            attention.append(path)
            found[path] = "tokens"
        elif isinstance(module, nn.Linear):
            found[path] = AUTO
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            found[path] = "positions"
    return found


def select(model: nn.Module, layers: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    """The layers meant by `layers` (see `Capture`): path -> kind; SpecError for what matches nothing."""
    if isinstance(layers, Mapping):
        for path in layers:
            _module(model, path)
        return dict(layers)
    known = discover(model)
    if layers is None:
        if not known:
            raise SpecError(f"nothing to measure in {type(model).__name__}: it has no Linear, convolution or attention")
        return known
    chosen: set[str] = set()
    others: dict[str, str] = {}
    for pattern in [layers] if isinstance(layers, str) else layers:
        matching = [path for path in known if fnmatchcase(path, pattern)]
        if not matching:
            if any(c in pattern for c in "*?["):
                raise SpecError(f"no layer matches '{pattern}'{did_you_mean(pattern, known)}")
            _module(model, pattern)
            others[pattern] = AUTO
        chosen.update(matching)
    return {path: kind for path, kind in known.items() if path in chosen} | others


def forward_order(model: nn.Module, example_input: Any, layers: Mapping[str, str] | None = None) -> dict[str, int]:
    """Place of each layer in the order of execution (by first call), from one forward pass in eval mode.

    `example_input`: a tensor, a tuple of positional arguments or a dict of keyword arguments. Layers that the pass
    does not call are left out.
    """
    order: dict[str, int] = {}

    def note(path: str) -> Any:
        def hook(*_: Any) -> None:
            order.setdefault(path, len(order))

        return hook

    chosen = select(model, layers)
    handles = [_module(model, path).register_forward_pre_hook(note(path)) for path in chosen]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(model):
            if isinstance(example_input, Mapping):
                model(**example_input)
            else:
                model(*(example_input if isinstance(example_input, tuple) else (example_input,)))
    finally:
        for handle in handles:
            handle.remove()
    return order


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every module is put back into its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def first_tensor(value: Any, path: str = "") -> Tensor:
    """The first tensor of a module's output: itself, or in a tuple, list, mapping (ModelOutput) or dataclass."""
    found = _search(value)
    if found is None:
        raise SpecError(f"layer '{path}' gives no tensor but {type(value).__name__}: leave it out of the layers")
    return found


def _search(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        parts: Any = value.values()
    elif isinstance(value, tuple | list):
        parts = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        return None
    return next((tensor for tensor in map(_search, parts) if tensor is not None), None)


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        known = [name for name, _ in model.named_modules() if name]
        raise SpecError(f"{type(model).__name__} has no module '{path}'{did_you_mean(path, known)}") from error
