"""A network at a checkpoint with its probe: rebuilt from the store, loaded once, passed through once for all analyses.

The probe is the *confirm* probe of the trial: events are found on the other one, so that what is measured here is not
picked for having changed. Step 0 is the initialisation, which follows from the trial alone and needs no checkpoint.
"""

import fnmatch
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ndt_ray import registry
from ndt_ray.analysis.api import Partition
from ndt_ray.data import Dataset, load, probes
from ndt_ray.errors import CheckpointError, DataError, SpecError, did_you_mean
from ndt_ray.lanes.batches import Batches
from ndt_ray.measurement.capture import evaluating, first_tensor
from ndt_ray.measurement.evaluate import chunks
from ndt_ray.models import build, describe, load_user_factory, source_hash
from ndt_ray.models.layers import SelfAttention
from ndt_ray.spec import Trial

Floats = NDArray[np.float64]
KEPT = 2
"""Networks a worker keeps with their activations: cnn_deep with 512 images of MNIST is 180 MB."""


@dataclass(frozen=True)
class Layer:
    """A tracked layer: module path, place in the forward pass (as in `measurements`), kind of its output."""

    path: str
    index: int
    kind: str


class ProbeContext:
    """A network in eval mode and what its layers give on the probe; nothing is computed before it is asked for.

    `wanted`: glob patterns of modules whose outputs are kept besides those of tracked layers and attention patterns.
    """

    def __init__(
        self,
        trial: Trial,
        step: int,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        data: Dataset,
        wanted: Sequence[str] = (),
    ) -> None:
        self.trial, self.step, self.model, self.inputs = trial, step, model.eval(), inputs
        self.labels: NDArray[np.int64] = labels.numpy()
        self.classes = data.inputs.classes
        self.kind = data.inputs.kind
        self.padding = data.inputs.padding
        self.passes = 0
        """Times the whole probe went through the unchanged network."""
        self._data = data
        self._wanted = wanted
        tracked = describe(model, data.inputs).tracked
        self.layers = [Layer(path, i, kind) for i, (path, kind) in enumerate(tracked.items())]

    @property
    def n(self) -> int:
        """Stimuli of the probe."""
        return len(self.labels)

    def layer(self, path: str) -> Layer:
        """A tracked layer by its path; SpecError, with the closest, where there is none."""
        known = {layer.path: layer for layer in self.layers}
        if path not in known:
            raise SpecError(f"{self.trial.model.name} has no tracked layer '{path}'{did_you_mean(path, known)}")
        return known[path]

    def listed(self, paths: Sequence[str] | None, tell: Callable[[str], None] = lambda _: None) -> list[Layer]:
        """Those of these layers that this network has, by default all; what it lacks is told.

        Networks of a sweep have different layers; `Analysis.layers` refuses what none of them has.
        """
        known = {layer.path: layer for layer in self.layers}
        wanted = list(known) if paths is None else paths
        if lacking := [path for path in wanted if path not in known]:
            tell(f"{self.trial.model.name} has no layer {', '.join(lacking)} - there are: {', '.join(known)}")
        return [layer for path, layer in known.items() if path in wanted]

    # -- what the layers give ------------------------------------------------------------------------------------

    def activations(self, path: str) -> NDArray[np.float32]:
        """Output `[n, ...]` of a module; SpecError where there is no such module, or none asked for its output."""
        outputs = self._forward[0]
        if path not in outputs:
            modules = {name for name, _ in self.model.named_modules()}
            if path not in modules:
                raise SpecError(f"{self.trial.model.name} has no module '{path}'{did_you_mean(path, modules)}")
            raise SpecError(f"the output of '{path}' was not kept: declare it, @analysis(…, context=('{path}',))")
        found: NDArray[np.float32] = outputs[path].numpy()
        return found

    def stimuli(self, path: str, rectified: bool = False) -> Floats:
        """One row a stimulus, `[n, units]`: the mean over positions or tokens of a tracked layer's output.

        `rectified`: of its positive part, which is what a ReLU behind the layer passes on.
        """
        kind = self.layer(path).kind
        found = self.activations(path)
        if rectified:
            found = np.maximum(found, 0)
        axes = {"units": (), "tokens": tuple(range(1, found.ndim - 1)), "positions": tuple(range(2, found.ndim))}[kind]
        return np.asarray(found.mean(axis=axes, dtype=np.float64) if axes else found, dtype=np.float64)

    @property
    def attention(self) -> dict[str, NDArray[np.float32]]:
        """Attention patterns `[n, heads, queries, keys]` by the path of the attention module; none without any."""
        outputs = self._forward[0]
        return {path: outputs[f"{path}.pattern"].numpy() for path in attention_paths(self.model)}

    def head_outputs(self, path: str) -> Floats:
        """What each head of an attention module adds to its output, mean over tokens, `[n, heads, features]`."""
        heads = self.attention[path].shape[1]
        mixed = self._forward[1][f"{path}.out_proj"].double().mean(1).numpy()
        weight = self.weight(f"{path}.out_proj")
        assert weight is not None
        by_head = weight.reshape(len(weight), heads, -1)
        return np.asarray(np.einsum("nhd,fhd->nhf", mixed.reshape(len(mixed), heads, -1), by_head))

    @property
    def logits(self) -> Floats:
        """`[n, classes]`."""
        return np.asarray(self._forward[0][""].double().numpy())

    @property
    def classifier(self) -> str | None:
        """Path of the last tracked layer where it is a Linear onto the classes."""
        last = self.layers[-1].path
        module = self.model.get_submodule(last)
        return last if isinstance(module, nn.Linear) and module.out_features == self.classes else None

    @property
    def classifier_input(self) -> Floats | None:
        """What the classifier is given, `[n, features]`: the penultimate representation."""
        found = None if self.classifier is None else self._forward[1][self.classifier]
        return None if found is None or found.ndim != 2 else np.asarray(found.double().numpy())

    def losses(self) -> Floats:
        """Cross-entropy `[n]` of each stimulus, in nats."""
        return self.losses_of(self.logits)

    @cached_property
    def _forward(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs by path ('' is the network's own), and inputs of classifier and attention's output projections: the
        one forward pass."""
        self.passes += 1
        outputs: dict[str, list[Tensor]] = {}
        inputs: dict[str, list[Tensor]] = {}

        def keep(path: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                # A copy: an in-place ReLU behind the layer would overwrite what was kept.
                outputs.setdefault(path, []).append(first_tensor(output, path).detach().clone())

            return hook

        def keep_input(path: str) -> Callable[..., None]:
            def hook(_module: nn.Module, args: Any) -> None:
                inputs.setdefault(path, []).append(first_tensor(args).detach().clone())

            return hook

        handles = [self.model.get_submodule(path).register_forward_hook(keep(path)) for path in self._kept()]
        entered = [f"{path}.out_proj" for path in attention_paths(self.model)]
        for path in [*entered, *([] if self.classifier is None else [self.classifier])]:
            handles.append(self.model.get_submodule(path).register_forward_pre_hook(keep_input(path)))
        try:
            outputs[""] = self._pass()
        finally:
            for handle in handles:
                handle.remove()
        kept, given = ({path: torch.cat(parts) for path, parts in found.items()} for found in (outputs, inputs))
        return kept, given

    def _kept(self) -> list[str]:
        """Paths of the modules whose outputs are kept."""
        modules = [name for name, _ in self.model.named_modules() if name]
        paths = [layer.path for layer in self.layers] + [f"{path}.pattern" for path in attention_paths(self.model)]
        paths += [name for name in modules if any(fnmatch.fnmatchcase(name, pattern) for pattern in self._wanted)]
        return list(dict.fromkeys(paths))

    def _pass(self) -> list[Tensor]:
        with torch.no_grad(), evaluating(self.model):
            return [self.model(chunk).detach() for chunk in chunks(self.inputs)]

    # -- the network itself --------------------------------------------------------------------------------------

    def weight(self, path: str) -> Floats | None:
        """The weight of a module as rows of units `[out, in …]`; None where it has none."""
        found = getattr(self.model.get_submodule(path), "weight", None)
        return np.asarray(found.detach().double().numpy()) if isinstance(found, Tensor) and found.ndim > 1 else None

    def parameters(self) -> dict[str, Floats]:
        """All trained parameters by name."""
        named = self.model.named_parameters()
        return {name: np.asarray(p.detach().double().numpy()) for name, p in named if p.requires_grad}

    def losses_under(self, path: str, change: Callable[[Tensor], Tensor]) -> Floats:
        """Losses `[n]` where the first input of a module is changed: an intervention, with a pass of its own."""

        def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return change(args[0]), *args[1:]

        handle = self.model.get_submodule(path).register_forward_pre_hook(hook)
        try:
            return _cross_entropy(torch.cat(self._pass()), self.labels)
        finally:
            handle.remove()

    def logits_without(self, path: str, instead: Tensor | float) -> Floats:
        """Logits `[n, classes]` where a module gives `instead` - one number, or one stimulus' output - for all."""
        return self.logits_with(path, lambda output: torch.zeros_like(output) + instead)

    def logits_with(self, path: str, change: Callable[[Tensor], Tensor]) -> Floats:
        """Logits `[n, classes]` where the output of a module is changed: an intervention, with a pass of its own."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return change(output[0]), *output[1:]
            return change(output)

        handle = self.model.get_submodule(path).register_forward_hook(hook)
        try:
            return np.asarray(torch.cat(self._pass()).double().numpy())
        finally:
            handle.remove()

    def losses_of(self, logits: Floats) -> Floats:
        """Cross-entropy `[n]` of other logits on the probe's labels, in nats."""
        return _cross_entropy(torch.from_numpy(logits), self.labels)

    def logits_with_weights_zeroed(self, path: str) -> Floats:
        """Logits `[n, classes]` where a module's weight is zero and its bias, if it has one, is as it was."""
        weight = self.model.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        kept = weight.detach().clone()
        try:
            with torch.no_grad():
                weight.zero_()
            return np.asarray(torch.cat(self._pass()).double().numpy())
        finally:
            with torch.no_grad():
                weight.copy_(kept)

    def training(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels that the trial is trained on: its own subset, noise and control."""
        batches = Batches([self.trial], self._data, torch.device("cpu"))
        index = torch.from_numpy(np.sort(batches.subsets[0]))
        return batches.inputs[index], batches.labels[0][index]


class Networks(Protocol):
    """What contexts are made from: `pool.SweepTables` has it."""

    def read(self, table: str, partition: Partition) -> pa.Table: ...

    def checkpoint(self, trial_id: str, step: int) -> Mapping[str, Any]: ...


class Contexts:
    """Networks by trial and step, the last few kept: `contexts(trial_id, step)`."""

    def __init__(self, tables: Networks, wanted: Sequence[str] = (), kept: int = KEPT) -> None:
        self.loads = 0
        """Checkpoints (and initialisations) that were loaded."""
        self._tables, self._wanted, self._size = tables, wanted, kept
        self._kept: OrderedDict[tuple[str, int], ProbeContext] = OrderedDict()

    def __call__(self, trial_id: str, step: int) -> ProbeContext:
        key = (trial_id, step)
        if key not in self._kept:
            while len(self._kept) >= self._size:  # before the next one is made: they are large
                self._kept.popitem(last=False)
            self._kept[key] = self._load(trial_id, step)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _load(self, trial_id: str, step: int) -> ProbeContext:
        self.loads += 1
        rows = self._tables.read("trials", Partition(trial_id)).to_pylist()
        if not rows:
            raise CheckpointError(f'no trial {trial_id} - `ndt query "SELECT trial_id FROM trials"` lists them')
        row = rows[0]
        trial = Trial.model_validate_json(row["spec"])
        data = load(trial.data.name, trial.data.params)
        _same("data set", row.get("data_hash"), data.hash, trial)
        measure = trial.measure
        chosen = probes(data, measure.probe, measure.confirm, measure.probe_seed, trial.evaluate.size)
        _same("confirm probe", row.get("confirm_hash"), chosen.confirm_hash, trial)
        model = initial(trial, data)
        if step > 0:
            fill(model, self._tables.checkpoint(trial_id, step), f"{trial.cell} at step {step} (trial {trial_id})")
        inputs, labels = data.test_x[chosen.confirm], data.test_y[chosen.confirm]
        return ProbeContext(trial, step, model, inputs, labels, data, self._wanted)


def initial(trial: Trial, data: Dataset) -> nn.Module:
    """The trial's network at its initialisation; SpecError where a user's model file is no longer what it was."""
    name = trial.model.name
    if ".py:" not in name:
        return build(registry.resolve("model", name), data.inputs, trial.model.params, trial.seed.init)
    file = name.rpartition(":")[0]
    if trial.source is not None and source_hash(file) != trial.source:
        raise SpecError(f"{file} has changed since trial {trial.trial_id} was trained: put back the file it was")
    return build(load_user_factory(name), data.inputs, trial.model.params, trial.seed.init)


def fill(model: nn.Module, arrays: Mapping[str, Any], where: str) -> None:
    """Weights and buffers of a checkpoint into a model; CheckpointError for one that is of another network."""
    trained = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    wanted = trained | {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}
    there = {name for name in arrays if name.startswith(("model.", "buffer."))}
    if there != set(wanted):
        lacking, extra = sorted(set(wanted) - there), sorted(there - set(wanted))
        raise CheckpointError(f"this checkpoint is not of {where}: it lacks {lacking[:3]} and has unknown {extra[:3]}")
    for name, tensor in wanted.items():
        array = np.asarray(arrays[name])
        if array.shape != tuple(tensor.shape):
            raise CheckpointError(f"this checkpoint is not of {where}: {name} is {array.shape}, not {tensor.shape}")
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(np.array(array)))


def attention_paths(model: nn.Module) -> list[str]:
    """Modules of which the attention pattern can be seen: those that pass it through a module of its own."""
    return [path for path, module in model.named_modules() if isinstance(module, SelfAttention)]


@contextmanager
def trained_copy(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The trained parameters, free to be changed inside; they are put back at the end."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    try:
        yield parameters
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
                parameter.grad = None


def _cross_entropy(logits: Tensor, labels: NDArray[np.int64]) -> Floats:
    return np.asarray(F.cross_entropy(logits.double(), torch.from_numpy(labels), reduction="none").numpy())


def _same(what: str, recorded: str | None, found: str, trial: Trial) -> None:
    if recorded is not None and recorded != found:
        raise DataError(
            f"the {what} '{trial.data.name}' is not the one that trial {trial.trial_id} was measured on "
            f"({found[:12]}…, then {recorded[:12]}…): point NDT_DATA to that one"
        )
