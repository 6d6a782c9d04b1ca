"""cluster.yaml, checked offline with the schema and the scheduler of the installed Ray; no cloud is asked."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def examples_in_docs() -> list[Any]:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.S)
    return [document for block in blocks for document in yaml.safe_load_all(block)]


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    full = prepare_config(copy.deepcopy(config))
    validate_config(full)
    return full


def test_ray_accepts_it(raw: dict[str, Any]) -> None:
    types = prepared(raw)["available_node_types"]
    assert {"head", "gpu.spot", "gpu.ondemand", "cpu.analysis"} == set(types)
    assert sum(t["max_workers"] for t in types.values()) == raw["max_workers"]


def test_a_mistyped_key_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="idle_timeout_minute' was unexpected"):
        prepared({**raw, "idle_timeout_minute": 5})


def test_an_unknown_head_type_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="head_node_type"):
        prepared({**raw, "head_node_type": "haed"})


def test_a_node_type_without_resources_is_refused(raw: dict[str, Any]) -> None:
    bad = copy.deepcopy(raw)
    bad["available_node_types"]["gpu.spot"]["resource"] = bad["available_node_types"]["gpu.spot"].pop("resources")
    with pytest.raises(Exception, match=r"resource"):
        prepared(bad)


def test_the_head_trains_nothing_and_is_on_demand(raw: dict[str, Any]) -> None:
    head = raw["available_node_types"]["head"]
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    spot = {n for n, t in raw["available_node_types"].items() if "InstanceMarketOptions" in t["node_config"]}
    assert spot == {"gpu.spot", "cpu.analysis"}
    for name, kind in raw["available_node_types"].items():
        assert kind["labels"]["market"] == ("spot" if name in spot else "on-demand")


@pytest.mark.parametrize(
    ("bundle", "count", "availability", "expected"),
    [
        ({"CPU": 1, "GPU": 1}, 3, {}, {"gpu.spot": 3}),
        ({"CPU": 1, "GPU": 1}, 3, {"gpu.spot": 0.0}, {"gpu.ondemand": 3}),  # spot requests went unanswered
        ({"CPU": 1, "GPU": 1}, 18, {}, {"gpu.spot": 16, "gpu.ondemand": 2}),
        ({"CPU": 2, "GPU": 0.25}, 8, {}, {"gpu.spot": 2}),
        ({"CPU": 1}, 20, {}, {"cpu.analysis": 2}),
    ],
)
def test_what_the_autoscaler_starts(
    raw: dict[str, Any], bundle: dict[str, float], count: int, availability: dict[str, float], expected: dict[str, int]
) -> None:
    """Ray's own scheduler (autoscaler v2, which `ray up` uses) on this file: spot first, on demand as the fallback."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

    config = AutoscalingConfig(configs=prepared(raw), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=[ResourceRequestByCount(request=ResourceRequestUtil.make(bundle), count=count)],
        recoverable_resource_availabilities=availability,
    )
    launched = ResourceDemandScheduler(None).schedule(request).to_launch
    assert {each.instance_type: each.count for each in launched} == expected


def test_images_and_constraints_agree(raw: dict[str, Any]) -> None:
    (ray,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    (torch,) = re.findall(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    images = re.findall(r"rayproject/ray:([\w.]+)-py(\d+)-", (ROOT / "cluster.yaml").read_text())
    assert {version for version, _ in images} == {ray}
    assert len({python for _, python in images}) == 1
    assert any(f"torch=={torch}" in command for command in raw["setup_commands"])


def test_syncing_leaves_no_part_of_the_package_behind(raw: dict[str, Any]) -> None:
    """rsync matches a pattern without a leading slash at any depth: `store` would drop ndt_ray/store."""
    loose = {pattern for pattern in raw["rsync_exclude"] if not pattern.startswith("/")}
    names = {p.name for top in ("ndt_ray", "analysis", "sweeps") for p in (ROOT / top).rglob("*")}
    assert not loose - {"__pycache__"} & names
    assert "rsync_filter" not in raw  # .gitignore's patterns are not rsync's


def test_it_holds_no_secret() -> None:
    named = r"(secret|password|token)\w*[\"']?\s*[:=]\s*[0-9a-z+/]{16}"
    for path in (ROOT / "cluster.yaml", ROOT / "docs" / "cluster.md"):
        text = path.read_text()
        assert not re.search(rf"AKIA[0-9A-Z]{{16}}|{named}|-----BEGIN|[0-9a-f]{{40}}", text, re.I)
        assert "RAY_AUTH_TOKEN=" not in text


def test_the_on_premise_example_is_accepted() -> None:
    (local,) = (d for d in examples_in_docs() if d.get("provider", {}).get("type") == "local")
    prepared(local)


def test_the_kubernetes_examples_are_ray_resources() -> None:
    kinds = {d["kind"]: d for d in examples_in_docs() if "kind" in d}
    assert kinds["RayCluster"]["apiVersion"] == "ray.io/v1"
    spec = kinds["RayCluster"]["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (ray,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert spec["rayVersion"] == ray
