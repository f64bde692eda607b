"""The example configuration and alert rules for Prometheus: valid, and about metrics that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from schemas.topics import CONSUMER_GROUPS
from serving.metrics import ReplicaMetrics
from streams import metrics

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "info": ("_info",)}


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def exported(registry: CollectorRegistry) -> set[str]:
    """The names of all series, also of those that have no labels' values yet."""
    families = list(registry.collect())
    return {family.name + suffix for family in families for suffix in _SUFFIXES.get(family.type, ("",))}


def known() -> set[str]:
    return exported(metrics.registry) | exported(ReplicaMetrics("replica-1").registry) | {"up"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in load("alerts.yml")["groups"] for rule in group["rules"]]


def unknown_names(text: str) -> set[str]:
    """Metrics in an expression or a sentence that no process exports."""
    return set(re.findall(r"\b(?:tuneloop_\w+|up(?=\{))", text)) - known()


def test_every_metric_of_a_rule_is_exported() -> None:
    for rule in rules():
        said = " ".join(rule["annotations"].values())
        assert unknown_names(rule["expr"] + " " + said) == set(), rule["alert"]
        assert re.search(r"\b(tuneloop_\w+|up)\b", rule["expr"]), f"{rule['alert']} asks for nothing of ours"


@pytest.mark.parametrize("expr", ["tuneloop_lag > 5", "rate(tuneloop_dead_letters[5m])", "tuneloop_batch_seconds > 1"])
def test_a_metric_that_nobody_exports_is_found(expr: str) -> None:
    assert unknown_names(expr)


def test_every_rule_says_who_what_and_what_next() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    wanted = {"TuneloopLagGrowing", "TuneloopDeadLetters", "TuneloopNoHeartbeat", "TuneloopTransactionsAborted"}
    assert wanted <= set(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "warn")
        assert rule["annotations"].keys() == {"summary", "next"}
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_the_processes_in_selectors_exist() -> None:
    named = {
        name
        for rule in rules()
        for part in re.findall(r'process[!=]~?"([^"]*)"', rule["expr"])
        for name in part.split("|")
    }
    assert named and named <= {*CONSUMER_GROUPS, "serve"}


def test_the_configuration_finds_the_rules_and_what_up_writes() -> None:
    config = load("prometheus.yml")
    assert [(FOLDER / name).exists() for name in config["rule_files"]] == [True]
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "tuneloop"
    (file,) = job["file_sd_configs"][0]["files"]
    assert (FOLDER / file).resolve() == Path(__file__).parents[2] / ".tuneloop" / "run" / "prometheus.json"
