"""One trial, fully said: every choice that its numbers depend on, and nothing else.

A `Trial` is the unit of identity: `trial_id` is a hash of all of it, defaults included. A sweep (`axes.py`) is a
grid of trials; a pack (`plan.py`) is a set of trials that can train as lanes of one program.
"""

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ndt_ray.errors import did_you_mean
from ndt_ray.layer_views import VIEWS

SPEC_VERSION = 1
"""Enters every trial id: raised when the meaning of a field changes."""


class Strict(BaseModel):
    """A model that refuses unknown keys and cannot be changed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Named(Strict):
    """A registered name with its parameters: `mlp_narrow`, or `{name: vit, depth: 4}`."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "name" in value and isinstance(value.get("params", {}), dict):
            extra = {k: v for k, v in value.items() if k not in ("name", "params")}
            return {"name": value["name"], "params": {**value.get("params", {}), **extra}}
        return value


class Schedule(Strict):
    """Learning rate over steps, as a factor of `lr`: linear warm-up, then constant or half a cosine down to `final`."""

    name: Literal["constant", "cosine"] = "constant"
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    final: float = Field(default=0.0, ge=0, le=1, description="factor at the last step (cosine)")


class Train(Strict):
    steps: int = Field(gt=0, description="optimizer updates")
    batch: Annotated[int, Field(gt=0)] | Literal["full"] = 64
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=1e-3, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1, description="sgd only")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    schedule: Schedule = Schedule()
    loss_dtype: Literal["float32", "float64"] = "float32"
    subset: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="train on so many samples, drawn by seed.data"
    )
    label_noise: float = Field(default=0.0, ge=0, le=1, description="share of labels replaced, drawn by seed.data")


class Measure(Strict):
    every: int = Field(default=10, gt=0, description="steps between measurements; 0 and the last always")
    dense_until: int = Field(default=0, ge=0, description="every step up to this one is measured too")
    log: int = Field(default=0, ge=0, description="additional measurements at this many log-spaced steps")
    probe: int = Field(default=256, gt=1, description="stimuli of the detect probe")
    confirm: int | None = Field(default=None, gt=1, description="stimuli of the confirm probe; by default as `probe`")
    probe_seed: int = Field(default=0, ge=0)
    layers: tuple[str, ...] | None = Field(default=None, description="glob patterns; by default all tracked")
    views: dict[str, str | tuple[str, ...]] = Field(
        default_factory=dict,
        description="view by kind of layer, see VIEWS; of several the first is the layer's, the others are in"
        " `other_views`",
    )
    spectra: Literal["full", "none"] | Annotated[int, Field(gt=0)] = Field(
        default="full", description="eigenvalues kept a row"
    )
    velocity: bool = True
    dynamics: bool = Field(default=True, description="per-layer norms of gradient, update and weights")
    coarse: int | None = Field(default=None, gt=0, description="steps between weight spectra and curvature")

    @field_validator("views")
    @classmethod
    def _views_exist(cls, value: dict[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
        found: dict[str, str | tuple[str, ...]] = {}
        for kind, said in value.items():
            if kind not in VIEWS:
                raise ValueError(f"unknown kind of layer '{kind}'{did_you_mean(kind, VIEWS)}")
            names = (said,) if isinstance(said, str) else said
            for view in names:
                if view not in VIEWS[kind]:
                    raise ValueError(f"{kind}: unknown view '{view}'{did_you_mean(view, VIEWS[kind])}")
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{kind}: views are one or more, none twice, but got {list(names)}")
            found[kind] = names[0] if len(names) == 1 else names  # said either way it is the same trial
        return found


class Evaluate(Strict):
    every: int | None = Field(default=None, gt=0, description="steps between; by default the first and the last")
    size: int | None = Field(default=None, gt=0, description="held-out samples; by default all that no probe holds")


Watched = Literal[
    "participation_ratio",
    "participation_ratio_corrected",
    "participation_ratio_sv",
    "stable_rank",
    "nuclear_norm_ratio",
    "rankme",
    "velocity",
]
"""Measures that may be watched while training; integer-valued energy_90 has no noise to compare a change with."""


class OnEvent(Strict):
    """Checkpoints before, during and after changes that a detector sees while training."""

    measures: tuple[Watched, ...] = Field(
        default=("participation_ratio", "velocity"),
        description="watched in every measured layer",
    )
    false_alarms_per_run: float = Field(
        default=0.1, gt=0, le=10, description="expected in a trial without events, over all its series"
    )
    most: int = Field(default=3, ge=1, le=100, description="triggers a trial, at most")
    keep: int = Field(default=5, ge=2, le=64, description="recent states held in memory, a trial")
    spacing: int = Field(default=4, ge=1, description="measurements between held states")
    after: int = Field(default=5, ge=1, description="measurements from a trigger to the checkpoint after it")

    @field_validator("measures", mode="before")
    @classmethod
    def _from_a_list(cls, value: Any) -> Any:
        """Behind `Checkpoint._from_a_switch` a list of JSON has become one of Python, which strictly is no tuple."""
        return tuple(value) if isinstance(value, list) else value

    @field_validator("measures")
    @classmethod
    def _in_order(cls, value: tuple[Watched, ...]) -> tuple[Watched, ...]:
        if not value:
            raise ValueError("names no measure: nothing would be watched")
        return tuple(sorted(set(value)))


PLAN: dict[str, Any] = {
    "description": "a file of steps by experiment ({model}_{data}) as `ndt plan-checkpoints` writes it, or these steps",
    "anyOf": [{"type": "string"}, {"type": "object"}],
}
"""What a sweep file may say of checkpoints beside the fields: it becomes steps of `at`, so that a trial's id depends on
its steps and not on the file."""


def _with_plan(schema: dict[str, Any]) -> None:
    schema["properties"]["plan"] = PLAN


class Checkpoint(Strict):
    model_config = ConfigDict(json_schema_extra=_with_plan)

    at: tuple[Annotated[int, Field(ge=0)], ...] = ()
    fractions: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    every: int | None = Field(default=None, gt=0)
    log: int = Field(default=0, ge=0, description="this many log-spaced steps")
    on_event: OnEvent | None = Field(default=None, description="true: its defaults; false: planned checkpoints only")

    @field_validator("on_event", mode="before")
    @classmethod
    def _from_a_switch(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that trials which watch nothing keep the ids that they had before there was anything to watch."""
        found: dict[str, Any] = handler(self)
        return {name: value for name, value in found.items() if name != "on_event" or value is not None}

    @field_validator("at", "fractions")
    @classmethod
    def _order_does_not_matter(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        """So that it does not change the trial's id either."""
        return tuple(sorted(set(value)))


SeedNumber = Annotated[int, Field(ge=0, lt=2**63)]


class Seeds(Strict):
    """One number for all four sources of variation, or one each."""

    init: SeedNumber = 0
    order: SeedNumber = 0
    dropout: SeedNumber = 0
    data: SeedNumber = 0

    @model_validator(mode="before")
    @classmethod
    def _from_one_number(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"init": value, "order": value, "dropout": value, "data": value}
        return value


Damage = Literal["blur", "flip", "noise", "labels"]
"""What training data may suffer in a window: a blur, being upside down, noise instead, labels in random order."""

_WINDOW = re.compile(
    r"(?P<what>[^@*~]+)(?:@(?P<at>\d+)(?:-(?P<until>\d+))?)?(?:\*(?P<dose>[0-9.eE+-]+))?(?:~(?P<lr_from>\d+))?"
)
CONTROL_NEEDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "lr0": (),
    "shuffled_labels": (),
    "frozen": ("layer",),
    "ablate": ("layer", "at"),
    "reinit": ("layer", "at"),
    "perturb": ("layer", "at"),
    "damage": ("damage", "at", "until"),
    "reorder": ("branch", "at"),
    "lr": ("factor", "at"),
    "schedule": ("lr_from", "at"),
}
_MAY: dict[str, tuple[str, ...]] = {
    "ablate": ("lr_from",),
    "reinit": ("lr_from",),
    "perturb": ("lr_from",),
    "damage": ("lr_from",),
    "lr": ("until",),
}
"""What may be said besides; of `frozen` all of a window, or nothing."""
_FORMS = {
    "layer": "LAYER",
    "damage": "blur|flip|noise|labels",
    "branch": "BRANCH",
    "factor": "FACTOR",
    "lr_from": "STEP",
    "at": "@FROM",
    "until": "-UNTIL",
}


class Control(Strict):
    """A lane that should show nothing (`lr0`), a contrast (`shuffled_labels`, `frozen:LAYER`), or an intervention.

    `ablate:LAYER@STEP*DOSE` zeroes the weights of a share of the layer's units, `reinit:LAYER@STEP` puts the layer back
    to its initialisation, `perturb:LAYER@STEP*DOSE` adds a random direction as long as what `ablate` takes away, each
    before the next update; `frozen:LAYER@FROM-UNTIL` and `damage:KIND@FROM-UNTIL` last for the updates of a window.
    `reorder:BRANCH@STEP` sees the data in another order from there on, and nothing else differs: a sibling of every
    other branch. Until then the lane is the untouched trial, bit for bit.

    `lr:FACTOR@FROM-UNTIL` multiplies the learning rate in a window (without UNTIL: to the end), and
    `schedule:STEP@FROM` goes on from FROM as the schedule does from STEP: 0 restarts it. `~STEP` behind a lesion or a
    window does the same from its end on, so that what follows it has the learning rates of another time.
    """

    kind: Literal[
        "none", "lr0", "shuffled_labels", "frozen", "ablate", "reinit", "perturb", "damage", "reorder", "lr", "schedule"
    ] = "none"
    layer: str | None = None
    damage: Damage | None = None
    branch: int | None = Field(default=None, gt=0, description="which of the other orders (reorder)")
    at: int | None = Field(default=None, ge=0, description="step of the intervention: measured there, it has happened")
    until: int | None = Field(default=None, gt=0, description="step at which a window ends")
    dose: float = Field(default=1.0, ge=0, le=1, description="share of the layer's units (ablate, perturb)")
    factor: float | None = Field(default=None, ge=0, description="of the learning rate (lr)")
    lr_from: int | None = Field(default=None, ge=0, description="step that the schedule is read at from the end on")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        kind, _, rest = value.partition(":")
        if not rest:
            return {"kind": kind}
        found = _WINDOW.fullmatch(rest)
        if found is None:
            raise ValueError(f"not of the form KIND:LAYER@STEP-STEP*DOSE: {value!r}")
        parts: dict[str, Any] = {k: v for k, v in found.groupdict().items() if v is not None}
        parts |= {k: int(parts[k]) for k in ("at", "until", "lr_from") if k in parts}
        what = {"damage": "damage", "lr": "factor", "schedule": "lr_from", "reorder": "branch"}.get(kind, "layer")
        parts = {what: parts.pop("what"), **parts}
        for name in {"dose", "factor", *({what} & {"lr_from"})} & parts.keys():
            try:
                parts[name] = int(parts[name]) if name == "lr_from" else float(parts[name])
            except ValueError:
                raise ValueError(f"the {name} of {value!r} is no number") from None
        if kind == "reorder":
            if not str(parts["branch"]).isdecimal():
                raise ValueError(f"a branch is a whole number from 1 on, but got {parts['branch']!r} in {value!r}")
            parts["branch"] = int(parts["branch"])
        return {"kind": kind, **parts}

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that trials without an intervention keep the ids that they had before there were any."""
        found: dict[str, Any] = handler(self)
        default = {"damage": None, "branch": None, "at": None, "until": None, "dose": 1.0}
        default |= {"factor": None, "lr_from": None}
        return {name: value for name, value in found.items() if name not in default or value != default[name]}

    def __str__(self) -> str:
        """As a sweep file says it: `none`, `frozen:LAYER`, `ablate:LAYER@400*0.5`."""
        what = self.layer or self.damage or self.branch or (None if self.factor is None else f"{self.factor:.12g}")
        shifted = "" if self.lr_from is None else f"~{self.lr_from}"
        if self.kind == "schedule":
            what, shifted = shifted[1:] or None, ""
        window = "" if self.at is None else f"@{self.at}" if self.until is None else f"@{self.at}-{self.until}"
        dose = "" if self.dose == 1 else f"*{self.dose:g}"
        return self.kind if what is None else f"{self.kind}:{what}{window}{dose}{shifted}"

    @property
    def intervenes(self) -> bool:
        """Whether something is done to the lane at a step; a sibling merely sees its data in another order."""
        return self.at is not None and self.kind != "reorder"

    @property
    def ends(self) -> int | None:
        """The step from which on nothing is done to the lane: of a window its end, of a lesion its step."""
        return self.at if self.until is None else self.until

    @model_validator(mode="after")
    def _all_that_the_kind_needs(self) -> "Control":
        needs = CONTROL_NEEDS[self.kind]
        given = {name for name in _FORMS if getattr(self, name) is not None}
        windowed = self.kind == "frozen" and given - {"lr_from"} == {"layer", "at", "until"}
        if not (set(needs) <= given <= {*needs, *_MAY.get(self.kind, ())}) and not windowed:
            wanted = "".join(_FORMS[n] for n in needs)
            raise ValueError(f"'{self.kind}' is written {self.kind}{':' if wanted else ''}{wanted}, but got {self!s}")
        if self.until is not None and self.at is not None and self.until <= self.at:
            raise ValueError(f"a window ends after it began, but got {self.at}-{self.until}")
        if self.factor == 1:
            raise ValueError(f"a factor of 1 changes nothing, but got {self!s}")
        if self.dose != 1 and self.kind not in ("ablate", "perturb"):
            raise ValueError(f"a dose goes with ablate and perturb, but got {self!s}")
        return self


class Trial(Strict):
    """One training run: a cell × one seed. Everything its trajectory and its measurements depend on."""

    model: Named
    data: Named
    train: Train
    measure: Measure = Measure()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    seed: Seeds = Seeds()
    control: Control = Control()
    engine: Literal["auto", "loop", "stack"] = "auto"
    width: int = Field(default=0, ge=0, description="lane width that the engine's kernels see; 0: none")
    source: str | None = Field(default=None, description="SHA-256 of the user's own model file; filled in by the plan")

    @property
    def cell(self) -> str:
        """`model/data`, with whatever else is not a default, is the plan's business; this is the short name."""
        return f"{self.model.name}/{self.data.name}"

    @property
    def untouched(self) -> "Trial":
        """The same trial without what its control does."""
        return self.model_copy(update={"control": Control()})

    @property
    def trial_id(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON of this trial and the spec version."""
        text = canonical_json({"spec_version": SPEC_VERSION, **self.model_dump(mode="json")})
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, finite numbers only (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
