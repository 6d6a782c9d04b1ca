"""A catalogue without torch: two data sets and a few models whose sizes a test can know by heart."""

from typing import Any

from ndt_ray.errors import DataError, SpecError, did_you_mean
from ndt_ray.inputs import InputSpec
from ndt_ray.plan.estimate import Cost, DataFacts, Layer, ModelFacts
from ndt_ray.spec import Named, Trial

DATA = {
    "digits": DataFacts("digits", InputSpec("image", (1, 8, 8), 10), 1197, 600, "complete", 600_000),
    "mnist": DataFacts("mnist", InputSpec("image", (1, 28, 28), 10), 60_000, 10_000, "complete", 220_000_000),
}
DEFAULTS: dict[str, dict[str, Any]] = {"mlp": {"hidden": [32]}, "vit": {"depth": 4, "width": 64}, "cnn_deep": {}}


class FakeCatalogue:
    """`step` seconds a step and lane, `measure` seconds a measurement and lane."""

    def __init__(self, step: float = 1e-3, measure: float = 2e-3, n_parameters: int = 10_000) -> None:
        self.step, self.measure, self.n_parameters = step, measure, n_parameters
        self.sources: dict[str, str] = {}

    def names(self, kind: str) -> list[str]:
        return {"model": list(DEFAULTS), "data": list(DATA), "analysis": ["jumps", "growth"]}.get(kind, [])

    def parameters(self, kind: str, named: Named) -> dict[str, Any]:
        if named.name not in self.names(kind):
            raise SpecError(f"unknown {kind} '{named.name}'{did_you_mean(named.name, self.names(kind))}")
        known = DEFAULTS[named.name] if kind == "model" else {"missing": False}
        for name in named.params:
            if name not in known:
                raise SpecError(f"{kind} '{named.name}': unknown parameter '{name}'{did_you_mean(name, known)}")
        return {**known, **named.params}

    def data(self, data: Named) -> DataFacts:
        if data.name == "mnist" and data.params.get("missing"):
            raise DataError("mnist: train-images is missing")
        return DATA[data.name]

    def model(self, model: Named, data: Named) -> ModelFacts:
        if model.name == "cnn_deep" and data.name == "digits":
            raise SpecError("halves the image 4 times, which leaves nothing of 8x8: use cnn_shallow")
        layers = (Layer("network.0", "units", (32,)), Layer("network.2", "units", (10,)))
        return ModelFacts(self.n_parameters, layers, ("network.0", "network.2"), ((32, 64), (32,), (10, 32)), 2e4, 106)

    def source(self, model: Named) -> str | None:
        return self.sources.get(model.name)

    def engine(self, trial: Trial, device: str) -> tuple[str, int]:
        if trial.engine != "auto":
            return trial.engine, 0
        return ("stack", 0) if trial.model.name == "mlp" else ("loop", 0)

    def guess(self, trial: Trial, lanes: int, device: str) -> Cost:
        return Cost(0.5, self.step * lanes, self.measure * lanes, 0.01 * lanes, 0.1 * lanes, 5e8, False)

    def cost(self, trial: Trial, lanes: int, device: str) -> Cost:
        cost = self.guess(trial, lanes, device)
        return Cost(cost.start, cost.step, cost.measure, cost.evaluate, cost.coarse, cost.memory, True)
