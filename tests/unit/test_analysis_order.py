"""Analyses run after those whose tables they read, which come along where they are not asked for."""

import pickle

import pandas as pd
import pytest

from ndt_ray import registry
from ndt_ray.analysis.api import Analysis
from ndt_ray.analysis.running.order import in_order
from ndt_ray.errors import SpecError
from ndt_ray.store.schema import Column, Table


def made(name, reads, writes):
    table = Table(writes, "Planted.", (Column("n", "int64", "a number"),), ("n",))
    return Analysis(name, reads, (table,), "sweep", lambda data: {writes: pd.DataFrame()})


FIRST = made("order_first", ("measurements",), "order_a")
SECOND = made("order_second", ("order_a", "trials"), "order_b")
THIRD = made("order_third", ("order_b", "order_a"), "order_c")


def names(analyses):
    return [named if isinstance(named, str) else named.name for named, _ in in_order(analyses)]


def test_writers_come_first():
    assert names([(THIRD, None), (FIRST, None), (SECOND, None)]) == ["order_first", "order_second", "order_third"]


def test_without_a_need_the_order_is_that_asked_for():
    assert names([("jumps", None), ("growth", None)]) == ["jumps", "growth"]
    assert names([("growth", None), ("jumps", None)]) == ["growth", "jumps"]


def test_parameters_stay_with_their_analysis():
    ordered = in_order([(SECOND, {"x": 1}), (FIRST, None)])
    assert [p for _, p in ordered] == [None, {"x": 1}]


def test_what_is_stood_on_comes_along():
    assert names([("events", None)]) == ["series_tests", "events"]
    found = names([("recovery", None)])
    assert found[-1] == "recovery" and found.index("series_tests") < found.index("events")


def test_what_is_read_where_it_is_brings_nobody_in_but_comes_first():
    table = Table("order_d", "Planted.", (Column("n", "int64", "a number"),), ("n",))
    fourth = Analysis("order_fourth", ("order_a", "order_b"), (table,), "sweep", lambda data: {}, None, ("order_b",))
    assert names([(fourth, None), (FIRST, None)]) == ["order_first", "order_fourth"]
    assert names([(fourth, None), (SECOND, None), (FIRST, None)]) == ["order_first", "order_second", "order_fourth"]
    found = names([("mechanisms", None)])
    assert not {"llc", "composition", "symmetry", "unit_ablation"} & set(found) and "units" in found
    assert names([("mechanisms", None), ("symmetry", None)]).index("symmetry") < len(found)
    again = pickle.loads(pickle.dumps(registry.resolve("analysis", "mechanisms")))
    assert again.optional and set(again.optional) < set(again.reads)


def test_every_registered_analysis_has_its_place():
    everything = names([(name, None) for name in registry.names("analysis")])
    assert sorted(everything) == registry.names("analysis")


def test_analyses_that_wait_for_each_other():
    a, b = made("order_x", ("order_z",), "order_y"), made("order_w", ("order_y",), "order_z")
    with pytest.raises(SpecError, match="wait for each other"):
        in_order([(a, None), (b, None)])
