"""A sweep through Tune on reused actors gives what one process gives, bit for bit, and computes nothing twice."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ndt_ray.progress import Event
from ndt_ray.run import Options, Result, run_sweep
from ndt_ray.spec.axes import Sweep
from ndt_ray.spec.sweepfile import load_sweep, parse_sweep, with_overrides
from ndt_ray.store.reader import open_store

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
from sweeping import assert_equal

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

ON_RAY = Options(executor="ray", workers=2)
ONE_WORKER = Options(executor="ray", workers=1)
INLINE = Options(executor="inline")

MODELS = """
import os, pathlib, random
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from ndt_ray.errors import SpecError, StoreError

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.shift = float(torch.rand(())) + random.random() + float(np.random.rand())
    def forward(self, x):
        return self.layer(F.dropout(x.flatten(1), 0.3, self.training)) + self.shift

class Vandal(Net):
    def forward(self, x):
        if self.training:
            torch.set_num_threads(2)
            torch.set_default_dtype(torch.float64)
            torch.set_flush_denormal(True)
            torch.manual_seed(torch.randint(9, ()).item())
            np.random.seed(7)
            random.seed(7)
        return super().forward(x)

class Refusing(Net):
    def __init__(self, marks, error, driver):
        super().__init__()
        self.marks, self.error, self.driver = pathlib.Path(marks), error, driver
    def forward(self, x):
        if self.training and os.getpid() != self.driver and len(list(self.marks.iterdir())) < 2:
            (self.marks / str(len(list(self.marks.iterdir())))).touch()
            raise {"store": StoreError, "spec": SpecError}[self.error]("not yet")
        return super().forward(x)

def net(inputs): return Net()
def vandal(inputs): return Vandal()
def refusing(inputs, *, marks: str, error: str, driver: int): return Refusing(marks, error, driver)
"""

OWN = """
name: own
base: {{data: digits, train: {{steps: 12}}, measure: {{probe: 32, every: 4}}, evaluate: {{size: 50}}}}
axes:
  - {{path: model, values: [{models}]}}
  - {{path: seed, range: 2}}
run: {{lanes: 1, cpus: {cpus}, retries: 3}}
"""


class Events(list[Event]):
    """A view that keeps what it is shown."""

    def show(self, event: Event) -> None:
        self.append(event)

    def close(self) -> None:
        pass

    def of(self, kind: str) -> list[Event]:
        return [e for e in self if e["event"] == kind]


def launched(sweep: Sweep, store: Path, options: Options = ON_RAY) -> tuple[Result, Events]:
    view = Events()
    return run_sweep(sweep, store, options, view), view


def own(folder: Path, *models: str, cpus: int = 1) -> Sweep:
    """A sweep over models of the file above, one lane a pack."""
    (folder / "models.py").write_text(MODELS)
    text = ", ".join(m.replace("FILE", f"{folder}/models.py") for m in models)
    return parse_sweep(OWN.format(models=text, cpus=cpus), folder=folder)


def attempts(store: Path) -> list[Any]:
    return open_store(store).attempts()


def test_a_sweep_on_ray_is_the_sweep_in_one_process(tmp_path: Path) -> None:
    sweep = load_sweep("smoke")
    on_ray, events = launched(sweep, tmp_path / "ray")
    inline, _ = launched(sweep, tmp_path / "inline", INLINE)
    assert on_ray.ok and inline.ok and on_ray.exit_code == 0
    assert_equal(tmp_path / "ray", tmp_path / "inline", least=300)
    assert [e["event"] for e in events if e["event"] != "progress"][:3] == ["plan", "start", "start"]
    assert events[-1]["event"] == "done" and events.of("analysis")[-1]["done"] == 4
    again, events = launched(sweep, tmp_path / "ray")
    assert again.already == 4 and [e["event"] for e in events] == ["plan", "analysis", "done"]


def test_a_reused_worker_carries_nothing_over(tmp_path: Path) -> None:
    """A model that leaves threads, dtype and generators in disorder, and one that draws from them, on one worker."""
    both = own(tmp_path, "'FILE:vandal'", "'FILE:net'", cpus=2)  # two CPUs a pack: one at a time
    result, _ = launched(both, tmp_path / "ray", ONE_WORKER)
    assert result.ok and len({a.pid for a in attempts(tmp_path / "ray")}) == 1
    for model in ("vandal", "net"):
        alone = own(tmp_path, f"'FILE:{model}'")
        for seed in (0, 1):
            assert launched(with_overrides(alone, [f"seed={seed}"]), tmp_path / f"alone-{model}", INLINE)[0].ok
    ours, theirs = open_store(tmp_path / "ray"), [open_store(tmp_path / f"alone-{m}") for m in ("vandal", "net")]
    for table in ("losses", "measurements", "evaluations", "outcomes"):
        columns = ", ".join(c.name for c in ours.schema(table).columns)
        query = f"SELECT {columns} FROM {table} ORDER BY ALL"
        together = ours.arrow(query).to_pylist()
        apart = [row for store in theirs for row in store.arrow(query).to_pylist()]
        assert together and sorted(map(repr, together)) == sorted(map(repr, apart)), table


def test_a_grid_grows_and_shrinks_and_nothing_is_computed_twice(tmp_path: Path) -> None:
    smoke = with_overrides(load_sweep("smoke"), ["model=[mlp_narrow]"])
    store = tmp_path / "store"
    first, _ = launched(smoke, store, ONE_WORKER)
    before = {(a.pack, a.generation) for a in attempts(store)}
    grown, events = launched(with_overrides(smoke, ["seed=[0, 1, 2, 3, 4]"]), store, ONE_WORKER)
    assert first.ok and grown.ok and grown.already == 2
    assert events[0]["finished_trials"] == 2 and sum(p["trials"] for p in events[0]["packs"]) == 3
    after = {(a.pack, a.generation) for a in attempts(store)}
    assert before < after and {g for _, g in after} == {1} and len(after) == 2
    assert events.of("analysis")[-1]["skipped"] == 2 and events.of("analysis")[-1]["done"] == 3
    shrunk, events = launched(with_overrides(smoke, ["seed=[3]"]), store, ONE_WORKER)
    assert shrunk.ok and events[0]["packs"] == [] and {(a.pack, a.generation) for a in attempts(store)} == after
    assert len(open_store(store).trials()) == 5
    alone, _ = launched(with_overrides(smoke, ["seed=[0, 1, 2, 3, 4]"]), tmp_path / "alone", INLINE)
    assert alone.ok
    assert_equal(store, tmp_path / "alone", least=300, without=("lane",))


def test_what_a_second_try_can_mend_is_retried_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "spec").mkdir()
    model = "{{name: 'FILE:refusing', marks: '{0}/{1}', error: {1}, driver: {2}}}"
    models = [model.format(tmp_path, kind, os.getpid()) for kind in ("store", "spec")]
    sweep = with_overrides(own(tmp_path, *models), ["seed=0"])
    result, events = launched(sweep, tmp_path / "data", ONE_WORKER)
    assert result.exit_code == 1 and result.launch.finished == 1
    assert [e["error"] for e in events.of("retry")] == ["not yet", "not yet"]
    (failed,) = events.of("fail")
    assert failed["error"] == "not yet" and failed["code"] == 2 and "spec" in failed["cell"]
    assert len(list((tmp_path / "spec").iterdir())) == 1
