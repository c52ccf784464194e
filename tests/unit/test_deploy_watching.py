"""Collector, Prometheus and Grafana: that they fit to one another and to what the code
declares. promtool's own tests of the rules are in test_deploy_promtool.py.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from crossfade import prometheus
from crossfade.plan import STAGES
from crossfade.settings import TelemetrySettings
from crossfade.telemetry import (
    FALLBACK_READS,
    INSTRUMENTS,
    MIRROR_LAG,
    OLDEST_PENDING,
    RECOPIES,
    REPAIRS,
    SHADOW_DROPPED,
    SYSTEMS,
    VERDICTS,
    Instrument,
)
from crossfade.verdict import Verdict
from tests.promql import Selector, groupings, selectors

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
COLLECTOR = yaml.safe_load((DEPLOY / "otel/collector.yaml").read_text())
PROMETHEUS, SCRAPING, IN_CLUSTER = (
    yaml.safe_load((DEPLOY / "prometheus" / name).read_text())
    for name in ("prometheus.yml", "scraping.yml", "kubernetes.yml")
)
GROUPS = yaml.safe_load((DEPLOY / "prometheus/rules/crossfade.yaml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDS = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
RULE_TESTS = yaml.safe_load((DEPLOY / "prometheus/tests/crossfade.yaml").read_text())["tests"]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/crossfade.json").read_text())
PANELS = DASHBOARD["panels"]
RUNBOOK = (ROOT / "docs/operations.md").read_text()

# Every series that there is, with its labels. `instance` and `job` are a sidecar's own.
SERIES = {
    name: {*prometheus.labels(item.labels), "instance", "job"}
    | ({"le"} if name.endswith("_bucket") and item.kind == "histogram" else set())
    for item in INSTRUMENTS
    for name in prometheus.series(item.name, item.unit, item.kind)
} | {
    # Of the collector's own, and of Prometheus's.
    "httpcheck_status": {"http_url", "http_method", "http_status_class", "http_status_code"},
    "httpcheck_error": {"http_url", "error_message"},
    "ALERTS": {"alertname", "alertstate", "severity"},
}
# What a label may say, where the code has a list of it.
WORDS = {
    "crossfade_verdict": {verdict.value for verdict in Verdict},
    "crossfade_stage": {stage.value for stage in STAGES},
    "db_system_name": set(SYSTEMS.values()),
    "crossfade_role": {"answered", "shadow", "mirror", "pinned"},
    "crossfade_rollback": {"barrier", "forced"},
    "job": {TelemetrySettings().service_name},
    "http_status_class": {"1xx", "2xx", "3xx", "4xx", "5xx"},
}


def labels_of(name: str) -> set[str]:
    """The labels of a series or of a record; fails the test for what is neither. A record has
    those that it was summed by, but a quantile has used up `le`."""
    if name in RECORDS:
        used = {"le"} if "histogram_quantile" in RECORDS[name] else set()
        return groupings(RECORDS[name]) - used
    assert name in SERIES, f"nothing is called {name}"
    return SERIES[name]


def check(expression: str) -> list[Selector]:
    found = list(selectors(expression))
    known: set[str] = set()
    for selector in found:
        labels = labels_of(selector.name)
        known |= labels
        for label, operator, text in selector.matchers:
            assert label in labels, f"{selector.name} has no label {label}"
            if label in WORDS and operator in {"=", "!="}:
                assert text in WORDS[label], f"{label} never says {text}"
            if label in WORDS and operator in {"=~", "!~"} and "$" not in text:
                assert set(text.split("|")) <= WORDS[label]
    assert groupings(expression) <= known, f"{expression} groups by what is not there"
    return found


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """(title of the panel, expression)."""
    for panel in PANELS:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for note in DASHBOARD["annotations"]["list"]:
        yield note["name"], note["expr"]


# --- the reader of expressions -----------------------------------------------------------------


def test_what_an_expression_mentions():
    expression = """
        sum by (le, a_b) (rate(x_total{l="m{n",k=~"p|q"}[5m])) / ignoring (c) y:z offset 10m
          unless on () absent(w) > 1e3 and bool_thing
    """

    assert [selector.name for selector in selectors(expression)] == [
        "x_total",
        "y:z",
        "w",
        "bool_thing",
    ]
    assert groupings(expression) == {"le", "a_b", "c"}


@pytest.mark.parametrize(
    "wrong",
    [
        "crossfade_verdict_total",
        'crossfade_verdicts_total{verdict="wrong"}',
        'crossfade_verdicts_total{crossfade_verdict="bad"}',
        'crossfade_verdicts_total{crossfade_verdict=~"wrong|bad"}',
        "sum by (collection) (crossfade_verdicts_total)",
        "rate(db_client_operation_duration_seconds[5m])",
    ],
)
def test_a_query_for_what_is_not_there_is_noticed(wrong):
    with pytest.raises(AssertionError):
        check(wrong)


# --- the collector -----------------------------------------------------------------------------


def test_every_part_of_a_pipeline_is_declared_and_every_part_is_used():
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in COLLECTOR["service"]["pipelines"].values():
        assert set(pipeline) == set(used)
        for kind, names in pipeline.items():
            assert names, "a pipeline without one part of it carries nothing"
            used[kind] |= set(names)
    for kind, names in used.items():
        assert names == set(COLLECTOR[kind])
    assert set(COLLECTOR["service"]["extensions"]) == set(COLLECTOR["extensions"])
    assert set(COLLECTOR) == {*used, "extensions", "service"}


@pytest.mark.parametrize("name", COLLECTOR["service"]["pipelines"])
def test_memory_is_limited_before_anything_else(name):
    pipeline = COLLECTOR["service"]["pipelines"][name]

    assert pipeline["processors"][0] == "memory_limiter"
    assert name.partition("/")[0] in {"traces", "metrics"}
    if "batch" in pipeline["processors"]:
        assert pipeline["processors"][-1] == "batch"


def test_both_signals_of_the_sidecar_arrive():
    pipelines = COLLECTOR["service"]["pipelines"]

    assert pipelines["traces"]["receivers"] == pipelines["metrics"]["receivers"] == ["otlp"]
    host, _, port = COLLECTOR["exporters"]["otlp_grpc/jaeger"]["endpoint"].partition(":")
    assert host in SERVICES
    assert port == "4317"
    # Other containers send: 127.0.0.1 would be the collector's own.
    for protocol in COLLECTOR["receivers"]["otlp"]["protocols"].values():
        assert protocol["endpoint"].startswith("0.0.0.0:")


def test_names_are_left_as_the_code_expects_them():
    exporter = COLLECTOR["exporters"]["prometheus"]

    assert not {"namespace", "add_metric_suffixes", "translation_strategy"} & set(exporter)


# --- Prometheus --------------------------------------------------------------------------------


def test_prometheus_scrapes_what_the_collector_offers():
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    collector = jobs["otel-collector"]

    assert collector["honor_labels"] is True, "else job and instance are the collector's"
    ((target,),) = [config["targets"] for config in collector["static_configs"]]
    service, _, port = target.partition(":")
    assert service in SERVICES
    assert COLLECTOR["exporters"]["prometheus"]["endpoint"].endswith(f":{port}")


def test_the_same_rules_and_jobs_hold_where_sidecars_are_scraped():
    names = [job["job_name"] for job in SCRAPING["scrape_configs"]]
    assert names == ["crossfade", *(job["job_name"] for job in PROMETHEUS["scrape_configs"])]
    for config in (SCRAPING, IN_CLUSTER):
        assert config["rule_files"] == PROMETHEUS["rule_files"]
        assert config["global"] == PROMETHEUS["global"]
        own = config["scrape_configs"][0]
        # The collector makes this label of service.name, and rules go by it.
        assert own["job_name"] == TelemetrySettings().service_name
        assert "metrics_path" not in own, "it is /metrics"


def test_the_sidecar_is_asked_directly_or_by_the_collector_and_never_both_ways():
    asked = {
        target
        for job in PROMETHEUS["scrape_configs"]
        for config in job["static_configs"]
        for target in config["targets"]
    }
    assert not {target for target in asked if target.startswith("sidecar")}

    override = yaml.safe_load((DEPLOY / "compose.scraping.yml").read_text())["services"]
    assert override["sidecar"]["environment"]["CROSSFADE_TELEMETRY__PUSH_METRICS"] == "false"
    (mount,) = override["prometheus"]["volumes"]
    source, place, _ = mount.split(":")
    assert source == "./deploy/prometheus/scraping.yml"
    assert place in {each.split(":")[1] for each in SERVICES["prometheus"]["volumes"]}
    ((target,),) = [each["targets"] for each in SCRAPING["scrape_configs"][0]["static_configs"]]
    host, _, port = target.partition(":")
    assert port == SERVICES["sidecar"]["environment"]["CROSSFADE_ADMIN__PORT"]
    # By any other name it would be refused (guard.py).
    hosts = override["sidecar"]["environment"]["CROSSFADE_ADMIN__HOSTS"]
    assert json.loads(hosts) == [host]


def test_in_a_cluster_the_pods_containers_are_found_and_shown_a_token():
    (job,) = IN_CLUSTER["scrape_configs"]
    keep = job["relabel_configs"][0]
    assert keep["action"] == "keep"
    name, _, port = keep["regex"].partition(";")
    pod = next(
        manifest
        for manifest in yaml.safe_load_all((DEPLOY / "kubernetes/deployment.yaml").read_text())
        if manifest["kind"] == "Deployment"
    )["spec"]["template"]["spec"]
    (sidecar,) = [each for each in pod["initContainers"] if each["name"] == name]
    assert [each["name"] for each in sidecar["ports"]] == [port]
    assert job["authorization"] == {"credentials_file": "secrets/crossfade-token"}


def test_prometheus_finds_its_rules_in_the_container():
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["prometheus"]["volumes"])

    assert PROMETHEUS["rule_files"] == ["rules/*.yaml"]
    assert mounts["./deploy/prometheus/rules"] == "/etc/prometheus/rules"
    assert (
        f"--config.file={mounts['./deploy/prometheus/prometheus.yml']}"
        in (SERVICES["prometheus"]["command"])
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_what_there_is(rule):
    assert check(rule["expr"])


def test_names_of_rules_are_unique():
    names = Counter(rule.get("alert") or rule["record"] for rule in RULES)

    assert {name for name, count in names.items() if count > 1} == set()
    assert all(re.fullmatch(r"Crossfade[A-Z][A-Za-z]+", name) for name in ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_to_do(name):
    alert = ALERTS[name]

    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]
    file, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert file == "docs/operations.md"
    assert anchor == name.lower()
    _, heading, section = RUNBOOK.partition(f"### {name}\n")
    assert heading, f"the runbook has no section {name}"
    assert len(section.partition("\n#")[0].split()) > 20, "it says what it means and what to do"


def test_the_runbook_knows_no_other_alerts():
    assert set(re.findall(r"^### (Crossfade\w+)$", RUNBOOK, re.MULTILINE)) == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_was_heard_and_silent_in_its_tests(name):
    looks = [
        look for test in RULE_TESTS for look in test["alert_rule_test"] if look["alertname"] == name
    ]

    assert any(look["exp_alerts"] for look in looks)
    assert any(not look["exp_alerts"] for look in looks)


def test_the_rules_are_tested_with_series_that_there_are():
    for test in RULE_TESTS:
        for given in test["input_series"]:
            assert check(given["series"])


# --- Grafana -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("title", "expression"), list(dashboard_queries()))
def test_a_panel_asks_for_what_there_is(title, expression):
    assert check(expression)


def shown_by(panel: dict[str, Any]) -> set[str]:
    """The series that a panel asks for, by way of a record, too."""
    found: set[str] = set()
    left = [target["expr"] for target in panel.get("targets", [])]
    while left:
        names = {each.name for each in selectors(left.pop())} - found
        found |= names
        left += [RECORDS[name] for name in names if name in RECORDS]
    return found


def series_of(item: Instrument) -> set[str]:
    return set(prometheus.series(item.name, item.unit, item.kind))


@pytest.mark.parametrize("item", INSTRUMENTS, ids=lambda item: item.name)
def test_every_instrument_is_on_a_panel(item):
    assert any(series_of(item) & shown_by(panel) for panel in PANELS), "nobody sees it"


@pytest.mark.parametrize(
    ("title", "item", "by"),
    [
        ("Repairs", RECOPIES, {"crossfade_outcome"}),
        ("Repairs", REPAIRS, {"crossfade_verdict"}),
        ("Mirror lag", MIRROR_LAG, {"crossfade_way"}),
        ("Age of the oldest", OLDEST_PENDING, set()),
        ("Verdicts", VERDICTS, {"crossfade_verdict"}),
        ("Bad verdicts", VERDICTS, {"crossfade_verdict"}),
        ("Reads that went elsewhere", FALLBACK_READS, {"db_system_name"}),
        ("Not compared, or excused", SHADOW_DROPPED, {"crossfade_reason"}),
    ],
)
def test_what_an_operator_looks_for_has_its_panel(title, item, by):
    """Recopies, lag, verdicts, fallback, dropped comparisons: where, and told apart by what."""
    (panel,) = [each for each in PANELS if each["title"] == title]
    assert panel["type"] == "timeseries"
    lines = [
        target for target in panel["targets"] if series_of(item) & shown_by({"targets": [target]})
    ]
    assert lines, f"{title} does not show {item.name}"
    for line in lines:
        assert by <= set(re.findall(r"\{\{(\w+)\}\}", line["legendFormat"]))


def test_a_panel_of_a_record_shows_what_it_is_made_of():
    shown = shown_by({"targets": [{"expr": "crossfade:verdicts:increase10m"}]})
    assert series_of(VERDICTS) <= shown
    assert not series_of(RECOPIES) & shown


def test_legends_name_labels_that_are_left():
    for title, target in (
        (panel["title"], target) for panel in PANELS for target in panel.get("targets", [])
    ):
        expression = target["expr"]
        if re.search(r"\b(sum|max|min|avg)\b", expression):
            left = groupings(expression)
        else:
            left = {label for each in selectors(expression) for label in labels_of(each.name)}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= left, title


def test_panels_are_told_apart_and_do_not_lie_upon_one_another():
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    covered: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & covered, panel["title"]
        covered |= cells


def test_panels_say_what_they_show():
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"].endswith(".")


def test_sources_of_data_are_provisioned():
    text = (DEPLOY / "grafana/provisioning/datasources/crossfade.yaml").read_text()
    sources = {source["uid"]: source for source in yaml.safe_load(text)["datasources"]}

    def asked(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if set(value) == {"type", "uid"}:
                assert sources[value["uid"]]["type"] == value["type"]
                yield value["uid"]
            for item in value.values():
                yield from asked(item)
        elif isinstance(value, list):
            for item in value:
                yield from asked(item)

    assert set(asked(DASHBOARD)) == {"prometheus"}
    exemplars = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert {each["datasourceUid"] for each in exemplars} == {"jaeger"}
    for source in sources.values():
        host, _, port = source["url"].removeprefix("http://").partition(":")
        assert any(mapping.endswith(f":{port}") for mapping in SERVICES[host]["ports"]), (
            f"{host} does not listen on {port}"
        )


def test_the_dashboard_is_where_grafana_looks():
    text = (DEPLOY / "grafana/provisioning/dashboards/crossfade.yaml").read_text()
    (provider,) = yaml.safe_load(text)["providers"]
    grafana = SERVICES["grafana"]
    mounts = dict(mount.split(":")[:2] for mount in grafana["volumes"])

    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/crossfade.json"
