"""Fills in what trials leave open, asking a catalogue; what they share is looked at once."""

import hashlib
from typing import Any, NamedTuple, Protocol

from ndt_ray.errors import DataError, NdtError, SpecError
from ndt_ray.plan.estimate import Cost, DataFacts, ModelFacts
from ndt_ray.plan.fit import misfits
from ndt_ray.spec import SPEC_VERSION, Control, Named, Strict, Train, Trial, canonical_json
from ndt_ray.spec.axes import Sweep, cell_namer


class Catalogue(Protocol):
    """What a plan asks about models and data; `catalogue.TorchCatalogue` answers it."""

    def names(self, kind: str) -> list[str]:
        """Registered names of a kind: model, data, measure, analysis."""

    def parameters(self, kind: str, named: Named) -> dict[str, Any]:
        """All parameters of a factory, defaults filled in; SpecError for a name or parameter that does not fit."""

    def data(self, data: Named) -> DataFacts:
        """Sizes of a data set; DataError if it cannot be had."""

    def model(self, model: Named, data: Named) -> ModelFacts:
        """Layers and sizes of a model on a data set; SpecError, with the way out, where the two do not fit."""

    def source(self, model: Named) -> str | None:
        """SHA-256 of a user's own model file; None for a registered model."""

    def engine(self, trial: Trial, device: str) -> tuple[str, int]:
        """The engine of a trial and its canonical width; SpecError where the engine asked for cannot train it."""

    def guess(self, trial: Trial, lanes: int, device: str) -> Cost:
        """Cost of a pack's single things from operation counts: the same on every machine, at once."""

    def cost(self, trial: Trial, lanes: int, device: str) -> Cost:
        """The same as measured on this machine, where that is known or can be had quickly; else a guess."""


class Lane(NamedTuple):
    """One trial of a pack: its id and cell, and what of it differs from its neighbours."""

    trial_id: str
    cell: str
    seed: tuple[int, int, int, int]
    lr: float
    weight_decay: float
    control: str


class Resolved(NamedTuple):
    """A resolved trial, as a lane too; `key` is one for all trials of the same computation."""

    trial: Trial
    lane: Lane
    key: str
    data: DataFacts
    model: ModelFacts


class Resolver:
    """Fills in what a trial leaves open. Sections that trials share are looked at once."""

    def __init__(self, sweep: Sweep, catalogue: Catalogue, device: str) -> None:
        self.catalogue, self.device = catalogue, device
        self.cell = cell_namer(sweep)
        self.cells: dict[str, str] = {}
        self.texts: dict[int, tuple[Strict, str]] = {}
        self.pairs: dict[tuple[str, str], tuple[Named, Named, DataFacts, ModelFacts, str | None] | str] = {}
        self.plain: dict[int, tuple[Train, Train]] = {}
        self.shared: dict[str, tuple[str, str, int] | str] = {}

    def resolve(self, trial: Trial) -> Resolved:
        """The resolved trial; SpecError, the same for every trial of the same kind, if it does not fit."""
        model, data, data_facts, model_facts, source = self._pair(trial)
        trial = trial.model_copy(update={"model": model, "data": data, "source": source})
        key, engine, width = self._shared(trial, data_facts, model_facts)
        # Controls are checked one by one: trials that share a computation are otherwise looked at once.
        if trial.control.kind != "none":
            self._refuse(trial, list(misfits(trial, data_facts, model_facts)))
        trial = trial.model_copy(update={"engine": engine, "width": width})
        cell = self.cell(trial)
        seed = (trial.seed.init, trial.seed.order, trial.seed.dropout, trial.seed.data)
        lane = Lane(
            self._identity(trial),
            self.cells.setdefault(cell, cell),
            seed,
            trial.train.lr,
            trial.train.weight_decay,
            str(trial.control),
        )
        return Resolved(trial, lane, key, data_facts, model_facts)

    def _pair(self, trial: Trial) -> tuple[Named, Named, DataFacts, ModelFacts, str | None]:
        key = self._text(trial.model), self._text(trial.data)
        if key not in self.pairs:
            try:
                self.pairs[key] = self._look_up(trial)
            except DataError:
                raise
            except SpecError as error:
                self.pairs[key] = str(error)
        found = self.pairs[key]
        if isinstance(found, str):
            raise SpecError(found)
        return found

    def _look_up(self, trial: Trial) -> tuple[Named, Named, DataFacts, ModelFacts, str | None]:
        ask = self.catalogue
        data = Named(name=trial.data.name, params=ask.parameters("data", trial.data))
        model = Named(name=trial.model.name, params=ask.parameters("model", trial.model))
        facts = ask.data(data)
        try:
            return model, data, facts, ask.model(model, data), ask.source(model)
        except NdtError as error:
            pair = f"{{model: {model.name}, data: {data.name}}}"
            hint = f"or leave the pair out with exclude: [{pair}]"
            raise SpecError(f"{model.name} on {data.name}: {error} - {hint}") from None

    def _shared(self, trial: Trial, data: DataFacts, model: ModelFacts) -> tuple[str, str, int]:
        """Hash, engine and width of all trials that share everything but `STACKABLE`; checked once."""
        parts = (self._plain(trial.train), trial.checkpoint, trial.data, trial.evaluate, trial.measure, trial.model)
        text = "\n".join([trial.engine, str(trial.source), *(self._text(part) for part in parts)])
        if text not in self.shared:
            try:
                self._refuse(trial, list(misfits(trial.model_copy(update={"control": Control()}), data, model)))
                engine, width = self.catalogue.engine(trial, self.device)
                key = hashlib.sha256(f"{SPEC_VERSION}\n{engine}\n{width}\n{text}".encode()).hexdigest()[:16]
                self.shared[text] = key, engine, width
            except SpecError as error:
                self.shared[text] = str(error)
        found = self.shared[text]
        if isinstance(found, str):
            raise SpecError(found)
        return found

    def _plain(self, train: Train) -> Train:
        """The training section without what may differ between lanes; the same object for the same section."""
        known = self.plain.get(id(train))
        if known is None:
            if len(self.plain) > 10_000:
                self.plain.clear()
            known = self.plain[id(train)] = train, train.model_copy(update={"lr": 0.0, "weight_decay": 0.0})
        return known[1]

    def _refuse(self, trial: Trial, problems: list[str]) -> None:
        if problems:
            raise SpecError("; ".join(f"{trial.cell}: {problem}" for problem in problems))

    def _identity(self, trial: Trial) -> str:
        """`trial.trial_id`, put together from the texts of shared sections: ten times faster."""
        parts = {name: self._text(getattr(trial, name)) for name in _SECTIONS}
        plain = {"engine": trial.engine, "source": trial.source, "spec_version": SPEC_VERSION, "width": trial.width}
        parts |= {name: canonical_json(value) for name, value in plain.items()}
        text = ",".join(f'"{name}":{parts[name]}' for name in sorted(parts))
        return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()[:16]

    def _text(self, part: Strict) -> str:
        known = self.texts.get(id(part))
        if known is None:
            if len(self.texts) > 10_000:
                self.texts.clear()
            known = self.texts[id(part)] = part, canonical_json(part.model_dump(mode="json"))
        return known[1]


_SECTIONS = ("checkpoint", "control", "data", "evaluate", "measure", "model", "seed", "train")
