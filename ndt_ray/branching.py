"""Lanes that are one trial until something is done to them train as one until then, and branch off at that step.

An intervened lane is the untouched trial bit for bit until its step (`Control`), so that the steps before it need to
be computed once for all lanes of a pack that share them: by the untouched lane, or by the one that is left alone the
longest. The rows of those steps are written for each lane, as if it had trained alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ndt_ray.spec import Control, Trial


@dataclass(frozen=True)
class Stage:
    """Steps of a pack up to `until`, over which only `trained` of its lanes train."""

    until: int
    trained: tuple[int, ...]
    """Places in the pack, ascending."""
    follows: tuple[int, ...]
    """For each lane of the pack, whom it equals: a place in `trained`."""


def stages(trials: Sequence[Trial]) -> list[Stage]:
    """The stages of a pack, in order; a single one, of all lanes, where nothing is shared."""
    steps = trials[0].train.steps
    whole = tuple(range(len(trials)))
    # A lane is on its own from the update that leads to its step: what is done there happens before it is recorded.
    cuts = sorted({t.control.at - 1 for t in trials if t.control.at is not None and 1 < t.control.at < steps})
    found: list[Stage] = []
    if cuts:
        untouched = [t.model_copy(update={"control": Control()}).model_dump_json() for t in trials]
        for cut in cuts:
            stage = _stage(trials, untouched, cut)
            if len(stage.trained) == len(trials):
                break  # whoever is on its own stays so
            if found and found[-1].trained == stage.trained:
                found.pop()
            found.append(stage)
    return [*found, Stage(steps, whole, whole)]


def _stage(trials: Sequence[Trial], untouched: Sequence[str], until: int) -> Stage:
    leader: dict[str, int] = {}
    leads = list(range(len(trials)))
    by_patience = sorted(leads, key=lambda lane: (-_left_alone(trials[lane]), lane))
    for lane in by_patience:
        if _left_alone(trials[lane]) > until:
            leads[lane] = leader.setdefault(untouched[lane], lane)
    trained = tuple(sorted(set(leads)))
    return Stage(until, trained, tuple(trained.index(lane) for lane in leads))


def _left_alone(trial: Trial) -> int:
    """Steps over which a lane is the untouched trial: all of them, none for a control from the start."""
    control = trial.control
    if control.kind == "none":
        return trial.train.steps
    return control.at or 0


def trained_share(trials: Sequence[Trial]) -> float:
    """Lane-steps that are computed / lane-steps of all trials of a pack."""
    done = computed = 0
    for stage in stages(trials):
        computed += (stage.until - done) * len(stage.trained)
        done = stage.until
    return computed / (done * len(trials))
