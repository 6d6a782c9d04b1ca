"""Whether a trial fits its data set and model: what is wrong is said before any worker starts."""

import fnmatch
from collections.abc import Iterator

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.plan.estimate import DataFacts, ModelFacts
from ndt_ray.schedule import checkpoint_steps
from ndt_ray.spec import Trial
from ndt_ray.spec.where import closest_path

LEAST_WATCHED = 18
"""Measurements on the grid before the detector of `checkpoint.on_event` can say anything (`online.Scale`)."""


def misfits(trial: Trial, data: DataFacts, model: ModelFacts) -> Iterator[str]:
    """One sentence for each thing that does not fit, with what to do."""
    yield from _training(trial, data)
    yield from _probes(trial, data)
    yield from _layers(trial, model)
    yield from _control(trial, data, model)
    try:
        checkpoint_steps(trial.checkpoint, trial.train.steps)
    except SpecError as error:
        yield str(error)
    watched = trial.checkpoint.on_event
    if watched is not None and "velocity" in watched.measures and not trial.measure.velocity:
        yield (
            "checkpoint.on_event: velocity is watched, which measure.velocity: false leaves unmeasured - give "
            "on_event: {measures: [participation_ratio]}"
        )
    measured = trial.train.steps // trial.measure.every + 1
    if watched is not None and measured < LEAST_WATCHED:
        yield (
            f"checkpoint.on_event: the detector begins with {LEAST_WATCHED} measurements, but measure.every="
            f"{trial.measure.every} gives {measured} in {trial.train.steps} steps: measure more often, or leave it out"
        )


def _training(trial: Trial, data: DataFacts) -> Iterator[str]:
    train = trial.train
    n = data.n_train
    if train.subset is not None and train.subset > n:
        yield f"train.subset: {data.name} has {n:,} training samples, but got {train.subset:,}: leave it out for all"
    n = min(n, train.subset or n)
    if train.batch != "full" and train.batch > n:
        yield f"train.batch: there are {n:,} training samples, but got {train.batch:,}: use at most {n}, or full"
    if train.momentum and train.optimizer != "sgd":
        yield f"train.momentum: is sgd's, but the optimizer is {train.optimizer}: remove it, or use betas"
    if not all(0 <= beta < 1 for beta in train.betas):
        yield f"train.betas: 0 <= beta < 1 must hold, but got {list(train.betas)}"
    if train.schedule.warmup > train.steps:
        yield (
            f"train.schedule.warmup: longer than training (warmup={train.schedule.warmup}, steps={train.steps}): "
            "the learning rate would never be reached"
        )


def _probes(trial: Trial, data: DataFacts) -> Iterator[str]:
    detect = trial.measure.probe
    confirm = detect if trial.measure.confirm is None else trial.measure.confirm
    evaluated = trial.evaluate.size or 1
    if detect + confirm + evaluated > data.n_test:
        most = (data.n_test - evaluated) // 2
        yield (
            f"measure.probe: the test split of {data.name} has {data.n_test:,} samples, but got probe={detect}, "
            f"confirm={confirm} and at least {evaluated} to evaluate on: use a probe of at most {most}"
        )


def _layers(trial: Trial, model: ModelFacts) -> Iterator[str]:
    paths = [layer.path for layer in model.layers]
    for pattern in trial.measure.layers or ():
        if not fnmatch.filter(paths, pattern):
            yield f"measure.layers: no layer of {trial.model.name} matches '{pattern}'{closest_path(pattern, paths)}"


def _control(trial: Trial, data: DataFacts, model: ModelFacts) -> Iterator[str]:
    control, steps = trial.control, trial.train.steps
    layer = control.layer
    if layer is not None and not any(m == layer or m.startswith(f"{layer}.") for m in model.modules):
        yield f"control: {trial.model.name} has no layer '{layer}' with weights{did_you_mean(layer, model.modules)}"
    if control.at is not None and control.at >= steps:
        yield f"control: {control} would never happen - training ends at step {steps}"
    if control.kind == "reorder" and trial.train.batch == "full":
        yield f"control: {control} has no order to change - every batch is the whole training set (train.batch: full)"
    schedule = trial.train.schedule
    if control.lr_from is not None and schedule.name == "constant" and not schedule.warmup:
        yield f"control: {control} changes nothing - the learning rate is constant: set train.schedule, or leave it out"
    if control.lr_from is not None and control.lr_from > steps:
        yield f"control: {control} reads the schedule at step {control.lr_from}, but it ends at {steps}"
    if control.damage not in (None, "labels") and data.inputs.kind != "image":
        yield f"control: {control} damages images, but {trial.data.name} has none: damage:labels is for any data"
