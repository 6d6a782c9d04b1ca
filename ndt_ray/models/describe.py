"""What a plan needs to know of a network before anything is trained: its size, its layers, the shapes they give."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ndt_ray.errors import SpecError
from ndt_ray.inputs import InputSpec
from ndt_ray.measurement.capture import evaluating
from ndt_ray.models.build import Factory, build, dry_run, is_builtin, seeded, sketch
from ndt_ray.models.layers import Kind

EXAMPLE_BATCH = 2
DIMS: dict[Kind, int] = {"units": 1, "tokens": 2, "positions": 3}
"""Of a layer's output, without the batch."""
KINDS = "kinds: units (F,), tokens (T, D), positions (C, H, W)"


@dataclass(frozen=True)
class Description:
    """What a network is made of, as seen from outside; shapes are those of one sample."""

    n_parameters: int
    """Trained numbers."""
    tracked: dict[str, Kind]
    """The layers measured, by module path in forward order, with the kind of their output."""
    shapes: dict[str, tuple[int, ...]]
    """Output of each tracked layer: (F,), (T, D) or (C, H, W)."""
    output: tuple[int, ...]
    """(classes,)."""


def outline(factory: Factory, inputs: InputSpec, params: Mapping[str, Any]) -> Description:
    """`describe` for a factory, without allocating weights unless a user's code cannot do without."""
    if is_builtin(factory):
        return describe(sketch(factory, inputs, params), inputs)
    try:
        return describe(sketch(factory, inputs, params), inputs)
    except Exception:  # whatever a user's code makes of meta tensors; what is truly wrong is raised again below
        return describe(build(factory, inputs, params, seed=0), inputs)


def describe(module: nn.Module, inputs: InputSpec) -> Description:
    """Parameters, tracked layers and output of `module`, from one forward pass.

    A module that does not say what is tracked has its Linears and Conv2ds tracked, in the order of their calls.
    Raises SpecError where the module does not take the data set's samples, gives anything but [batch, classes], or
    tracks nothing, or what is not there, or a layer whose output is not of the kind it says.
    """
    declared: dict[str, Kind] | None = getattr(module, "tracked", None)
    shapes = _output_shapes(module, inputs, _measurable(module) if declared is None else list(declared))
    output = shapes.pop("")
    tracked = _infer_kinds(module, shapes) if declared is None else declared
    _check_tracked(type(module).__name__, tracked, shapes)
    n_parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return Description(n_parameters, tracked, {name: shapes[name] for name in tracked}, output)


def _infer_kinds(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Kind]:
    """A Linear gives units or tokens, a Conv2d positions; anything else has axes that cannot be guessed."""
    kinds: dict[str, Kind] = {}
    for name, shape in shapes.items():
        if isinstance(module.get_submodule(name), nn.Conv2d):
            kinds[name] = "positions"
        elif len(shape) <= 2:
            kinds[name] = "units" if len(shape) == 1 else "tokens"
    return kinds


def _check_tracked(model: str, tracked: Mapping[str, Kind], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if not tracked:
        raise SpecError(
            f"{model} has nothing to measure: give it an attribute tracked = {{module path: kind}} ({KINDS})"
        )
    silent = [name for name in tracked if name not in shapes]
    if silent:
        raise SpecError(f"{model}: a forward pass gets no tensor from {silent}: take them off `tracked`")
    for name, kind in tracked.items():
        if len(shapes[name]) != DIMS.get(kind):
            raise SpecError(
                f"{model} tracks '{name}' as '{kind}', but a sample's output has shape {shapes[name]} ({KINDS})"
            )


def _output_shapes(module: nn.Module, inputs: InputSpec, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes without the batch, in the order of the first calls; '' is the whole module's."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                shapes.setdefault(name, tuple(out.shape[1:]))

        return hook

    modules = dict(module.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise SpecError(f"{type(module).__name__}.tracked names {unknown}, which are no modules of it")
    handles = [modules[name].register_forward_hook(note(name)) for name in names]
    try:
        out = _forward(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {**shapes, "": tuple(out.shape[1:])}


def _measurable(module: nn.Module) -> list[str]:
    return [name for name, leaf in module.named_modules() if name and isinstance(leaf, nn.Linear | nn.Conv2d)]


def _forward(module: nn.Module, inputs: InputSpec) -> Tensor:
    """Logits of a batch of zeros; of a sketch, which has no weights, with zeros for them."""
    dtype = torch.float32 if inputs.kind == "image" else torch.int64
    shape = (EXAMPLE_BATCH, *inputs.shape)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
    with torch.no_grad(), evaluating(module), seeded(0):
        try:
            if any(tensor.is_meta for tensor in state.values()):
                out = dry_run(module, torch.zeros(shape, dtype=dtype))
            else:
                out = module(torch.zeros(shape, dtype=dtype, device=device))
        except Exception as error:
            raise _unfit(module, shape, dtype, error) from error
    if not isinstance(out, Tensor) or tuple(out.shape) != (EXAMPLE_BATCH, inputs.classes):
        got = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise SpecError(
            f"{type(module).__name__} gives {got} for a batch of {EXAMPLE_BATCH}, but the data set has "
            f"{inputs.classes} classes: return logits of shape {(EXAMPLE_BATCH, inputs.classes)}"
        )
    return out


def _unfit(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, error: Exception) -> SpecError:
    return SpecError(
        f"{type(module).__name__} does not take the data set's samples, a {dtype} batch of shape {shape}: "
        f"{type(error).__name__}: {error}"
    )
