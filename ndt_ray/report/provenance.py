"""Where the numbers come from: sweep file, command, versions, fingerprints, data hashes, analyses, parameters."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from ndt_ray import registry
from ndt_ray.errors import StoreError
from ndt_ray.report.parts import Section, Sheet
from ndt_ray.report.source import Source
from ndt_ray.report.words import listed

Facts = list[tuple[str, str]]


def provenance(source: Source) -> tuple[Section, Facts, str]:
    """The section's tables, its facts (name, value), and the sweep file."""
    section = Section("provenance", "Provenance")
    section.sheets += [_analyses(source), _trials(source)]
    if (rules := _rules(source)) is not None:
        section.sheets.append(rules)
    if (attempts := _attempts(source)) is not None:
        section.sheets.append(attempts)
    try:
        env, spec = source.folder.env, source.folder.spec
    except StoreError:
        env, spec = {}, ""
    return section, list(_facts(source, env)), spec


def _facts(source: Source, env: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "sweep", source.sweep
    yield "store", source.store.location.uri
    if env.get("command"):
        yield "command", " ".join(str(part) for part in env["command"])
    if env.get("git"):
        yield "commit of the working directory", str(env["git"])
    if env.get("code"):
        yield "SHA-256 of the package's source", str(env["code"])
    if env.get("versions"):
        yield "versions", listed((f"{k} {v}" for k, v in env["versions"].items()), 20)
    if env.get("platform"):
        yield "launched on", f"{env['platform']}, Python {env.get('python')}, {env.get('cores')} cores"
    fingerprints = sorted(set(source.trials["fingerprint"].dropna()))
    if fingerprints:
        yield "numerics fingerprint of the trials", "; ".join(fingerprints)
    imported = _imported(source)
    if imported:
        skipped = imported.get("skipped", [])
        yield "imported from", f"{imported.get('imported')} (SHA-256 {imported.get('sha256')})"
        yield "left out on import", listed((f"{s['file']}: {s['why']}" for s in skipped), 12)


def _imported(source: Source) -> dict[str, Any]:
    if source.lanes:
        return {}
    try:
        plan = source.folder.plan
    except StoreError:
        return {}
    return plan if "imported" in plan else {}


def _analyses(source: Source) -> Sheet:
    """What was run: outputs, tables, rows, and a digest of the keys under which the outputs are stored."""
    asked = _asked(source)
    rows = []
    for name, tables in source.analyses.items():
        outputs = [o for sweep, analysis, o in source.snapshot.outputs if (sweep, analysis) == (source.sweep, name)]
        keys = sorted(o.cache_key for o in outputs)
        digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:12]
        rows.append(
            {
                "analysis": name,
                "outputs": len(outputs),
                "rows": sum(p.rows for o in outputs for p in o.parts),
                "tables": ", ".join(sorted(tables)),
                "parameters of the sweep file": json.dumps(asked[name]) if asked.get(name) else "defaults",
                "digest of keys": digest,
            }
        )
    docs = {
        "outputs": "one a trial, or one for the sweep",
        "digest of keys": "changes when parameters, code or inputs of any output change",
    }
    columns = ["analysis", "outputs", "rows", "tables", "parameters of the sweep file", "digest of keys"]
    known = registry.names("analysis")
    left = [name for name in known if name not in source.analyses]
    title = "Analyses" + (f" (not run: {listed(left, 20)})" if left else "")
    return Sheet(title, pd.DataFrame(rows, columns=columns), docs)


def _asked(source: Source) -> dict[str, Any]:
    """Parameters of analyses as the sweep file gives them."""
    import yaml

    try:
        found = yaml.safe_load(source.folder.spec) or {}
    except (StoreError, yaml.YAMLError):
        return {}
    named = found.get("analyses") or []
    return {a["name"]: a.get("params") for a in named if isinstance(a, dict) and "name" in a}


def _trials(source: Source) -> Sheet:
    answer = source.ask(
        'SELECT data, data_completeness AS completeness, data_hash AS "data hash", probe_size AS probe, '
        'probe_hash AS "probe hash", confirm_hash AS "confirm hash", engine, optimizer, lr, batch, count(*) AS trials '
        "FROM trials WHERE sweep = $sweep GROUP BY ALL ORDER BY ALL"
    )
    docs = {
        "completeness": "complete, subset, surrogate or generated",
        "data hash": "of the data set as loaded",
        "probe": "stimuli of the detect probe",
        "probe hash": "of the indices and inputs on which events are found",
        "confirm hash": "of those on which effect sizes are measured",
    }
    return Sheet("Data, probes and training", answer.rows, docs, answer.sql)


def _rules(source: Source) -> Sheet | None:
    """Detectors with their parameters."""
    parts = []
    if source.has("jump_counts"):
        parts.append(
            'SELECT DISTINCT detector, parameters, mode, NULL AS "null", grid_every AS every FROM jump_counts '
            "WHERE sweep = $sweep"
        )
    if source.has("series_tests"):
        parts.append(
            "SELECT DISTINCT detector, NULL AS parameters, 'calibrated' AS mode, \"null\", grid_every AS every "
            "FROM series_tests WHERE sweep = $sweep"
        )
    if not parts:
        return None
    answer = source.ask(" UNION ALL ".join(parts) + " ORDER BY ALL")
    docs = {"every": "distance of the measurements used, in steps", "null": "what the surrogates are"}
    return Sheet("Detectors", answer.rows, docs, answer.sql, folded=True)


def _attempts(source: Source) -> Sheet | None:
    answer = source.ask(
        'SELECT pack, generation, status, from_step AS "from step", to_step AS "to step", host, started, ended, error '
        "FROM attempts WHERE sweep = $sweep ORDER BY started, pack, generation"
    )
    return (
        Sheet("Starts of packs", answer.rows, {"generation": "1 for the first start"}, answer.sql, folded=True)
        if len(answer.rows)
        else None
    )
