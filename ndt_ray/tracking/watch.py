"""Hooks on the layers of a model that somebody else trains: what each put out last, and whether it still stands so.

Nothing here raises into the user's forward pass, and nothing changes it: outputs are kept as they are, and copied only
where a later operation works in place on them (`ReLU(inplace=True)`).
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.measurement.capture import AUTO, discover, evaluating, first_tensor, select
from ndt_ray.measurement.spectra import LinearInput

Passes = Literal["train", "grad", "all"]
"""Forward passes that are recorded: in training mode with gradients; any with gradients; any at all."""

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of module paths that torch.compile, FSDP and checkpoint wrappers put in; names of layers go without them."""


class Overwritten(Exception):
    """A layer's output was changed in place before it could be copied."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_name(path: str) -> str:
    """A module path without what wrappers put in; `(model)` for the model itself."""
    return ".".join(part for part in path.split(".") if part not in WRAPPERS) or "(model)"


def choose(
    model: nn.Module, layers: Sequence[Any] | nn.Module | str | None, names: Sequence[str] | None = None
) -> dict[str, tuple[str, str]]:
    """The layers to watch: path -> (name, kind), in the order of the module tree or as listed.

    `layers`: modules of the model, paths (wrapped or plain), or glob patterns; None for every Linear, convolution and
    attention, or what `model.tracked` says. `names` go with `layers`, one each; without `layers` they are taken for
    it. SpecError for what the model does not have, and for a model with nothing to measure.
    """
    if layers is None:
        if names is not None:
            return choose(model, names)
        return {path: (plain_name(path), kind) for path, kind in select(model, None).items()}
    listed = [layers] if isinstance(layers, str | nn.Module) else list(layers)
    if not listed:
        raise SpecError("layers is empty: name at least one, or leave it out to take all of them")
    if names is not None and len(names) != len(listed):
        raise SpecError(f"layer_names must name each of the layers, but got {len(names)} names for {len(listed)}")
    if names is not None and len(set(names)) != len(names):
        raise SpecError(f"layer_names must differ, but got {list(names)}")
    known = discover(model)
    chosen: dict[str, tuple[str, str]] = {}
    for i, layer in enumerate(listed):
        found = _matching(model, layer, known)
        if names is not None and len(found) != 1:
            raise SpecError(f"'{layer}' is {len(found)} layers: give layer_names only with one layer each")
        for path in found:
            name = plain_name(path) if names is None else names[i]
            chosen.setdefault(path, (name, known.get(path, AUTO)))
    return chosen


def _matching(model: nn.Module, layer: Any, known: Iterable[str]) -> list[str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, nn.Module):
        paths = [path for path, module in modules.items() if module is layer]
        if not paths:
            raise SpecError(f"{type(layer).__name__} among the layers is no part of {type(model).__name__}")
        return paths[:1]
    if not isinstance(layer, str):
        raise SpecError(f"a layer is a module or its path, but got {layer!r}")
    exact = [path for path in modules if layer in (path, plain_name(path))]
    if exact:
        return exact[:1]
    found = [path for path in known if fnmatchcase(plain_name(path), layer)]
    if not found:
        names = [plain_name(path) for path in modules if path]
        raise SpecError(f"{type(model).__name__} has no layer '{layer}'{did_you_mean(layer, names)}")
    return found


def stimulus_axis(model: nn.Module, path: str) -> int:
    """Which axis of a layer's three-axis output counts stimuli: 1 inside attention and recurrent layers that were
    built with batch_first=False, else 0."""
    parts = path.split(".") if path else []
    for end in range(len(parts), -1, -1):
        module = model.get_submodule(".".join(parts[:end]))
        for owner in (module, getattr(module, "self_attn", None)):
            batch_first = getattr(owner, "batch_first", None)
            if isinstance(owner, nn.Module) and isinstance(batch_first, bool):
                return 0 if batch_first else 1
    return 0


@dataclass
class _Kept:
    """An output (or, for an expanding Linear, its input and a copy of its weights) and its version when it was kept."""

    tensor: Tensor
    version: int
    copy: Tensor | None = None
    weights: tuple[Tensor, Tensor | None] | None = None

    @property
    def overwritten(self) -> bool:
        return not self.tensor.is_inference() and self.tensor._version != self.version


@dataclass(frozen=True)
class Seen:
    """What was seen of the layers since the last time: outputs `[n, ...]` or Linear inputs by path, and why not."""

    outputs: dict[str, Tensor | LinearInput]
    missing: dict[str, Exception | None]
    """Layers without an output: the error that kept them from being recorded, or None if they did not run."""


class Watch:
    """Records the last output of each layer while it is installed.

    An output is copied until it is known whether anything works on it in place; from then on only where something
    does, and only if `expected`: whoever owns the watch says whether the next pass will be looked at.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str], passes: Passes = "train") -> None:
        self.model, self.passes = model, passes
        self.expected = True
        self.order: dict[str, int] = {}
        """Place of each layer in the order of execution, by first call."""
        self._axes = {path: stimulus_axis(model, path) for path in paths}
        self._seen: dict[str, _Kept] = {}
        self._errors: dict[str, Exception] = {}
        self._steady: dict[tuple[str, bool], bool] = {}
        """Whether a layer's output (or, with True, its input) stood until it was looked at; absent while not known."""
        self._always_copy = False
        self._handles: list[RemovableHandle] = []
        self._ordering: dict[str, RemovableHandle] = {}

    def install(self, *, untraced: bool = True) -> None:
        """Put the hooks on. `untraced`: keep the compiler out of them; needless where the model runs eagerly."""
        for path in self._axes:
            module = self.model.get_submodule(path)
            self._handles.append(module.register_forward_hook(_After(self, path, module, untraced), with_kwargs=True))
            if path not in self.order:
                self._ordering[path] = module.register_forward_pre_hook(_Before(self, path, module, untraced))

    def remove(self) -> None:
        for handle in (*self._handles, *self._ordering.values()):
            handle.remove()
        self._handles.clear()
        self._ordering.clear()
        self._seen.clear()
        self._errors.clear()

    def take(self) -> Seen:
        """What was seen since the last `take` or `drop`; by path, outputs with the axis of stimuli in front."""
        self._settle()
        outputs: dict[str, Tensor | LinearInput] = {}
        for path, kept in self._seen.items():
            if kept.weights is not None and not kept.overwritten:
                weight, bias = kept.weights
                outputs[path] = LinearInput(kept.tensor[None], weight[None], None if bias is None else bias[None])
            elif kept.copy is not None or not kept.overwritten:
                outputs[path] = kept.tensor if kept.copy is None else kept.copy
            else:
                self._always_copy = self._always_copy or not self.expected
                self._errors[path] = Overwritten("its output was overwritten in place before it was measured")
        missing = {path: self._errors.get(path) for path in self._axes if path not in outputs}
        self._forget()
        return Seen(outputs, missing)

    def drop(self) -> None:
        """Let go of what was seen."""
        self._settle()
        self._forget()

    def _settle(self) -> None:
        for path, kept in self._seen.items():
            key = path, kept.weights is not None
            self._steady[key] = self._steady.get(key, True) and not kept.overwritten

    def _forget(self) -> None:
        self._seen.clear()
        self._errors.clear()
        for path in self._ordering.keys() & self.order.keys():
            self._ordering.pop(path).remove()

    def recording(self) -> bool:
        """Whether a forward pass that runs now is recorded."""
        return self.passes == "all" or (torch.is_grad_enabled() and (self.passes == "grad" or self.model.training))

    def note(self, path: str) -> None:
        """A layer is about to run."""
        self.order.setdefault(path, len(self.order))

    def keep(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        """A layer has run; never raises."""
        try:
            self._errors.pop(path, None)
            self._seen[path] = self._keep(path, module, args, output)
        except Exception as error:  # told with the next measurement, whose row is flagged
            self._seen.pop(path, None)
            self._errors[path] = error

    def _keep(self, path: str, module: nn.Module, args: Any, output: Any) -> _Kept:
        tensor = first_tensor(output, path).detach()
        wanted = self.expected or self._always_copy
        if wanted and self._steady.get((path, True), True) and expands(module, args, tensor):
            assert isinstance(module, nn.Linear)
            weights = module.weight.detach().clone(), None if module.bias is None else module.bias.detach().clone()
            inputs = args[0].detach()
            return _Kept(self._turned(path, inputs), _version(inputs), None, weights)
        steady = self._steady.get((path, False))
        copy = tensor.is_inference() or steady is None or (not steady and wanted)
        kept = self._turned(path, tensor)
        return _Kept(kept, _version(tensor), kept.clone() if copy else None)

    def _turned(self, path: str, tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1) if self._axes[path] and tensor.ndim == 3 else tensor


def expands(module: nn.Module, args: Any, output: Tensor) -> bool:
    """Whether a layer is a plain Linear whose output is exactly that of fewer features: measured by its input.

    Its output must be W x + b as computed here, so nothing may stand between: no other hook, no parametrization, no
    replaced forward, no autocast.
    """
    return (
        type(module) is nn.Linear
        and len(args) == 1
        and isinstance(args[0], Tensor)
        and args[0].ndim in (2, 3)
        and module.in_features + 1 < min(module.out_features, args[0].numel() // max(module.in_features, 1))
        and output.dtype == args[0].dtype == module.weight.dtype
        and output.dtype in (torch.float32, torch.float64)
        and len(module._forward_hooks) == 1
        and "forward" not in vars(module)
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class _Hook:
    """A hook of one module and of no copy of it: what is copied or pickled with a model does nothing."""

    def __init__(self, watch: Watch, path: str, module: nn.Module, untraced: bool) -> None:
        self.watch, self.path, self.module = watch, path, module
        # A compiled model breaks its graph here and calls this as it is.
        self._run = torch.compiler.disable(self.run) if untraced else self.run  # type: ignore[no-untyped-call]

    def __call__(self, *arguments: Any) -> None:
        self._run(*arguments)

    def __reduce__(self) -> Any:
        # Takes anything, does nothing, and can be unpickled where there is no ndt_ray.
        return getattr, (nullcontext(), "__exit__")

    def run(self, module: nn.Module, *arguments: Any) -> None:
        raise NotImplementedError

    def mine(self, module: nn.Module) -> bool:
        return module is self.module or getattr(module, "_is_replica", False)  # DataParallel's replicas share hooks


class _Before(_Hook):
    def run(self, module: nn.Module, *_: Any) -> None:
        if self.mine(module):
            self.watch.note(self.path)


class _After(_Hook):
    def run(self, module: nn.Module, *arguments: Any) -> None:
        if self.mine(module) and self.watch.recording():
            args, _kwargs, output = arguments
            self.watch.keep(self.path, module, args, output)


@contextmanager
def unnoticed(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, generators at 0: afterwards modes and random states are what they were.

    A compiled model runs eagerly inside, so that nothing is recompiled.
    """
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the ones a user's layer may draw from
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    compiled = any(_is_compiled(m) for m in model.modules())
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad(), evaluating(model):
            torch.default_generator.manual_seed(0)
            for index in cuda:
                torch.cuda.default_generators[index].manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            if compiled:
                with torch.compiler.set_stance("force_eager"):
                    yield
            else:
                yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
