"""The family of an architecture: one notion for registered models, published names and users' own files."""

import pandas as pd
import pytest
from phase1_frames import given, trials
from test_taxonomy import FAMILIES as DECLARED
from test_taxonomy import event, series_of

from ndt_ray import registry
from ndt_ray.analysis.events.phases import event_phases
from ndt_ray.architectures import FAMILIES, family_of


@pytest.mark.parametrize("name", registry.names("model"))
def test_every_registered_model_is_of_a_named_family(name: str) -> None:
    beside = {"resnet18": "cnn", "vit": "transformer", "modular_transformer": "transformer"}
    assert family_of(name) == beside.get(name, name.partition("_")[0])
    assert family_of(name) in FAMILIES


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("transformer_deep", "transformer"),
        ("models/mine.py:build", "other"),
        ("models/my_cnn.py:build", "cnn"),
        ("models/mine.py:TinyViT", "transformer"),
        ("models/mine.py:vit_small", "transformer"),
        ("mlp/mine.py:build", "other"),  # a folder tells nothing
        ("a/cnn.py:mlp_tall", "mlp"),  # the function before the file
        ("mine.py:cnn_transformer", "other"),  # a hybrid is neither
        ("mine.py:invited", "other"),
        ("C:\\mlp\\ResNet.py:build", "cnn"),
        ("", "other"),
    ],
)
def test_of_a_users_model_the_name_tells_or_nothing_does(model: str, family: str) -> None:
    assert family_of(model) == family


def test_tables_group_a_resnet_with_the_cnns_and_a_modular_transformer_with_transformers() -> None:
    names = trials(("resnet18", "cnn_b", "modular_transformer", "m.py:build"), 2)
    tables = {"trials": names, "events": pd.DataFrame([event(names["trial_id"][0], 0.02, 0.1, 0, 10.0)])}
    tables |= {"event_families": DECLARED.assign(alpha=0.05)}
    tables |= {"series_tests": series_of(names).assign(detector="d", null="ar_sieve")}
    found = event_phases(given(tables, event_phases.reads))["event_phases"].to_pandas()
    assert set(found.loc[found["grouping"] == "family", "group"]) == {"cnn", "transformer", "other"}
