"""What a plan asks about models and data sets, answered with torch: signatures, shapes on the meta device, costs.

Nothing is trained here and no weight is allocated for a registered model; data sets are loaded once, for their sizes.
"""

import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ndt_ray import registry
from ndt_ray.architectures import family_of
from ndt_ray.catalogue.calibration import Calibration, Timer
from ndt_ray.data import load
from ndt_ray.data.parameters import full_parameters
from ndt_ray.errors import NdtError, SpecError, did_you_mean
from ndt_ray.inputs import InputSpec
from ndt_ray.lanes.stack import only_linear, supports
from ndt_ray.layer_views import views_of
from ndt_ray.measurement.capture import evaluating
from ndt_ray.models.build import build, dry_run, is_builtin, sketch
from ndt_ray.models.describe import describe
from ndt_ray.models.user import load_user_factory, source_hash, split_target
from ndt_ray.plan import auto_lanes
from ndt_ray.plan.estimate import Cost, DataFacts, Layer, ModelFacts, memory_bytes
from ndt_ray.registry import Kind
from ndt_ray.spec import Named, Trial
from ndt_ray.spec.values import checked

FLOP_RATE = {"cpu": 1e11, "cuda": 1.5e13}
"""Multiply-adds counted as two, a second: half of one AVX-512 core's float32 peak; a guess for a GPU."""
DOUBLE_RATE = {"cpu": 4e10, "cuda": 5e12}
BYTE_RATE = {"cpu": 1e10, "cuda": 1e12}
LEAF_SECONDS = {"loop": 4e-5, "stack": 1.2e-5}
"""Of Python and dispatch, for each leaf of a lane in one step."""
EIG_64, EIG_POWER = 8e-5, 2.2
"""Seconds for the eigenvalues of a 64 x 64 float64 matrix, and how they grow with its side (MKL, one thread)."""
LAYER_SECONDS = 1.5e-4
"""Of Python, rows and measures, for each measured layer of a lane."""


class TorchCatalogue:
    """The `Catalogue` of this installation.

    `root` is the folder of data sets (default: NDT_DATA). With a `timer`, costs are measured where they are not known
    yet, for at most `budget` seconds in all; they are kept per machine in `cache` (default: see `calibration`).
    """

    def __init__(
        self, root: Path | None = None, timer: Timer | None = None, budget: float = 10.0, cache: Path | None = None
    ) -> None:
        self.root = root
        self.calibration = Calibration(timer, budget, cache)
        self._data: dict[str, DataFacts] = {}
        self._models: dict[str, tuple[ModelFacts, nn.Module]] = {}

    def names(self, kind: str) -> list[str]:
        """Registered names of a kind."""
        return registry.names(typing.cast(Kind, kind))

    # -- parameters ------------------------------------------------------------------------------------------------

    def factory(self, kind: str, name: str) -> Callable[..., Any]:
        """The function behind a name, or a user's own `file.py:factory`."""
        if kind == "model" and ".py:" in name:
            return load_user_factory(name)
        return registry.resolve(typing.cast(Kind, kind), name)

    def parameters(self, kind: str, named: Named) -> dict[str, Any]:
        """All parameters of a factory; SpecError for one that is unknown, missing or of the wrong type."""
        where = f"{kind} '{named.name}'"
        if kind == "data" and ".py:" in named.name:
            return dict(named.params)  # its own loader checks them against the function in the file
        function = self.factory(kind, named.name)
        if kind == "data":
            return jsonable(where, full_parameters(where, function, named.params))
        return jsonable(where, factory_parameters(where, function, named.params))

    def source(self, model: Named) -> str | None:
        """SHA-256 of a user's own model file."""
        return source_hash(split_target(model.name)[0]) if ".py:" in model.name else None

    # -- facts -----------------------------------------------------------------------------------------------------

    def data(self, data: Named) -> DataFacts:
        """Sizes of a data set; DataError if it cannot be had."""
        key = data.model_dump_json()
        if key not in self._data:
            loaded = load(data.name, data.params, self.root)
            tensors = (loaded.train_x, loaded.train_y, loaded.test_x, loaded.test_y)
            self._data[key] = DataFacts(
                data.name,
                loaded.inputs,
                len(loaded.train_y),
                len(loaded.test_y),
                loaded.completeness,
                sum(t.numel() * t.element_size() for t in tensors),
            )
        return self._data[key]

    def model(self, model: Named, data: Named) -> ModelFacts:
        """Layers and sizes of a model on a data set; SpecError, with models that do fit, where it does not take it."""
        return self._model(model, data)[0]

    def _model(self, model: Named, data: Named) -> tuple[ModelFacts, nn.Module]:
        inputs = self.data(data).inputs
        key = f"{model.model_dump_json()} {inputs}"
        if key not in self._models:
            try:
                self._models[key] = model_facts(self.factory("model", model.name), inputs, model.params)
            except NdtError as error:
                fitting = self._fitting(inputs, model.name)
                raise SpecError(f"{error}{f' - models that fit: {fitting}' if fitting else ''}") from None
        return self._models[key]

    def _fitting(self, inputs: InputSpec, name: str) -> str:
        """Registered models of the same family that take the data, or of any family if none of it does."""
        fitting = []
        for other in registry.names("model"):
            factory = registry.resolve("model", other)
            if required_parameters(factory):
                continue
            try:
                describe(sketch(factory, inputs, {}), inputs)
            except NdtError:
                continue
            fitting.append(other)
        family = [other for other in fitting if family_of(other) == family_of(name)]
        return ", ".join(family or fitting)

    def engine(self, trial: Trial, device: str) -> tuple[str, int]:
        """`stack` where it pays, else `loop`; on a GPU with the canonical width its kernels see."""
        module = self._model(trial.model, trial.data)[1]
        stackable = supports(module)
        if trial.engine == "stack" and not stackable:
            known = "Linear, Conv2d, Embedding, LayerNorm, GroupNorm and no buffers or shared weights"
            raise SpecError(f"engine: stack cannot train {trial.model.name}, which has more than {known}: use loop")
        own = ".py:" in trial.model.name  # may be written for [batch, ...] alone: stacked on request only
        pays = stackable and not own and (device == "cuda" or only_linear(module))
        engine = trial.engine if trial.engine != "auto" else "stack" if pays else "loop"
        width = 0
        if engine == "stack" and device == "cuda":
            width = auto_lanes(self.model(trial.model, trial.data).n_parameters, device)
        return engine, width

    # -- costs -----------------------------------------------------------------------------------------------------

    def guess(self, trial: Trial, lanes: int, device: str) -> Cost:
        """Cost from operation counts."""
        return guessed_cost(trial, lanes, device, self.model(trial.model, trial.data), self.data(trial.data))

    def cost(self, trial: Trial, lanes: int, device: str) -> Cost:
        """Cost as measured on this machine, else a guess corrected by what was measured of its like."""
        kinds = sorted({layer.kind for layer in self.model(trial.model, trial.data).layers})
        return self.calibration.cost(trial, lanes, device, "+".join(kinds), self.guess(trial, lanes, device))


# -- signatures ------------------------------------------------------------------------------------------------------


def factory_parameters(where: str, factory: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a model's factory but the input specification: those given, checked, and its defaults.

    A factory that takes `**kwargs` is given what it is given; SpecError starts with `where`.
    """
    known, takes_any = _own_parameters(factory)
    try:
        hints = typing.get_type_hints(factory, include_extras=True)
    except (NameError, TypeError):  # a user's annotations need not resolve
        hints = {}
    for name in given:
        if name not in known and not takes_any:
            raise SpecError(f"{where}: unknown parameter '{name}'{did_you_mean(name, known) or ' - it has none'}")
    full: dict[str, Any] = {name: value for name, value in given.items() if name not in known}
    for name, parameter in known.items():
        if name in given:
            full[name] = checked(f"{where}: {name}", hints.get(name, Any), given[name])
        elif parameter.default is parameter.empty:
            raise SpecError(f"{where}: parameter '{name}' is missing: give it beside the name")
        else:
            full[name] = parameter.default
    return full


def required_parameters(factory: Callable[..., Any]) -> list[str]:
    """Parameters without a default."""
    return [name for name, p in _own_parameters(factory)[0].items() if p.default is p.empty]


def _own_parameters(factory: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters a sweep may give, and whether any other is taken as well; the first may be the InputSpec's."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (ValueError, TypeError):
        return {}, True
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    own = {p.name: p for p in parameters if p.kind not in fixed and p.name != "inputs"}
    if parameters and not any(p.name == "inputs" for p in parameters):
        first = parameters[0]
        if first.kind is first.POSITIONAL_OR_KEYWORD and first.default is first.empty:
            own.pop(first.name)
    return own, any(p.kind is p.VAR_KEYWORD for p in parameters)


def jsonable(where: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON holds them, so that they are the same read back; SpecError where one is no plain value."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(parameters), allow_nan=False))
        return plain
    except (TypeError, ValueError) as error:
        raise SpecError(f"{where}: parameters must be plain numbers, texts and lists ({error})") from None


# -- models ----------------------------------------------------------------------------------------------------------


def model_facts(
    factory: Callable[..., Any], inputs: InputSpec, params: Mapping[str, Any]
) -> tuple[ModelFacts, nn.Module]:
    """What a plan needs to know of a model, and the model itself: on the meta device unless a user's code cannot."""
    try:
        module = sketch(factory, inputs, params)
        described = describe(module, inputs)
    except Exception:
        if is_builtin(factory):
            raise
        module = build(factory, inputs, params, seed=0)
        described = describe(module, inputs)
    layers = tuple(
        Layer(path, kind, described.shapes[path], _rank(module.get_submodule(path)))
        for path, kind in described.tracked.items()
    )
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    owners = tuple(dict.fromkeys(name.rpartition(".")[0] for name, _ in trained))
    shapes = tuple(tuple(p.shape) for _, p in trained)
    flops, activations = _forward_cost(module, inputs, described.n_parameters)
    return ModelFacts(described.n_parameters, layers, owners, shapes, flops, activations), module


def _rank(layer: nn.Module) -> int:
    return layer.in_features + 1 if isinstance(layer, nn.Linear) else 0


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Floating-point operations by torch's formulas. Its own counter would first import the compiler, for 1.3 s."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _forward_cost(module: nn.Module, inputs: InputSpec, n_parameters: int) -> tuple[float, int]:
    """Floating-point operations of one sample, and numbers that leaves give; rough where the code needs numbers."""
    numbers: list[int] = []

    def count(_module: nn.Module, _inputs: Any, out: Any) -> None:
        if isinstance(out, torch.Tensor):
            numbers.append(out.numel())

    dtype = torch.float32 if inputs.kind == "image" else torch.int64
    sample = torch.zeros((1, *inputs.shape), dtype=dtype)
    handles = [m.register_forward_hook(count) for m in module.modules() if not any(True for _ in m.children())]
    counter = _Flops()
    try:
        with torch.no_grad(), evaluating(module), counter:
            dry_run(module, sample)
        return float(max(counter.total, 2 * n_parameters // 100)), sum(numbers)
    except Exception:  # a user's code that does not run without its weights: an estimate, not an answer
        return 2.0 * n_parameters, 4 * n_parameters
    finally:
        for handle in handles:
            handle.remove()


# -- guesses ---------------------------------------------------------------------------------------------------------


def guessed_cost(trial: Trial, lanes: int, device: str, model: ModelFacts, data: DataFacts) -> Cost:
    """Seconds of single things from operation counts; within a factor of about 3 of one core of a recent server."""
    train = trial.train
    batch = data.n_train if train.batch == "full" else train.batch
    forward = model.flops / FLOP_RATE[device]
    wide = lanes if trial.engine == "loop" else max(1, math.ceil(lanes / 4))
    update = lanes * 24.0 * model.n_parameters / BYTE_RATE[device]
    moved = lanes * 20.0 * batch * model.activations / BYTE_RATE[device]
    leaves = 3 * len(model.modules) * LEAF_SECONDS[trial.engine if trial.engine in LEAF_SECONDS else "loop"]
    step = 3 * forward * batch * lanes + update + moved + wide * leaves + 1e-4
    held = data.n_test - 2 * trial.measure.probe
    n_evaluated = min(trial.evaluate.size or held, held)
    return Cost(
        start=0.05 + data.nbytes / 5e8,
        step=step,
        measure=lanes * _measure_seconds(trial, model, device, forward),
        evaluate=lanes * (n_evaluated * forward * 1.5 + 1e-3),
        coarse=lanes * (20 * 3 * forward * trial.measure.probe + _weight_seconds(model)),
        memory=memory_bytes(trial, lanes, model, data),
        calibrated=False,
    )


def _measure_seconds(trial: Trial, model: ModelFacts, device: str, forward: float) -> float:
    """The probe's forward pass; per layer a float64 Gram, the eigenvalues of two spectra, the kernel for velocity."""
    n = trial.measure.probe
    seconds = 1.5 * n * forward + 2e-4
    measured = model.measured(trial.measure)
    for layer, i, view in ((x, i, v) for x in measured for i, v in enumerate(views_of(x.kind, trial.measure.views))):
        rows, columns = layer.matrix(view, n)
        small = layer.eigenvalues(view, n)
        large = max(rows, columns)
        seconds += 2.0 * small * small * large / DOUBLE_RATE[device] + 2 * _eig_seconds(small) + LAYER_SECONDS
        if trial.measure.velocity and i == 0:
            seconds += 2.0 * n * n * rows * columns / n / DOUBLE_RATE[device] + 6 * 8.0 * n * n / BYTE_RATE["cpu"]
    return seconds


def _weight_seconds(model: ModelFacts) -> float:
    return sum(_eig_seconds(min(w[0], math.prod(w[1:]))) for w in model.parameters if len(w) > 1)


def _eig_seconds(side: int) -> float:
    return EIG_64 * float((side / 64) ** EIG_POWER) + 2e-6
