"""What Prometheus fetches, read by the library's own parser."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from crossfade import prometheus
from crossfade.telemetry import EPOCH, INSTRUMENTS, READS, Telemetry

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TRACE = 0x0AF7651916CD43DD8448EB211C80319C


@pytest.fixture
def telemetry():
    made = Telemetry()
    yield made
    made.close()


def samples(telemetry, scrape):
    text, kind = scrape.text(OPENMETRICS)
    assert kind.startswith("application/openmetrics-text")
    families = list(text_string_to_metric_families(text.decode()))
    return {family.name for family in families}, [
        sample for family in families for sample in family.samples
    ]


def test_names_and_labels_are_those_of_alerts_and_dashboards(telemetry):
    scrape = telemetry.scraped()
    telemetry.count(READS, "tasks", "postgresql", by=2)
    telemetry.gauge(EPOCH, lambda: {("default",): 3.0})
    telemetry.record_store("tasks", "get", "firestore", "answered", 0.01)
    _, found = samples(telemetry, scrape)
    by_name = {sample.name: sample for sample in found}
    declared = {
        name for item in INSTRUMENTS for name in prometheus.series(item.name, item.unit, item.kind)
    }
    assert set(by_name) - declared == {"target_info"}
    reads = by_name["crossfade_reads_total"]
    assert (reads.value, reads.labels["db_system_name"]) == (2.0, "postgresql")
    assert by_name["crossfade_epoch_ratio"].value == 3.0
    telemetry.count(READS, "tasks", "postgresql")
    _, again = samples(telemetry, scrape)
    assert [each.value for each in again if each.name == "crossfade_reads_total"] == [3.0]


def test_exemplars_lead_from_a_bucket_to_a_trace(telemetry):
    scrape = telemetry.scraped()
    telemetry.paired.add("tasks", "get", 0.010, 0.200, (TRACE, 1))
    telemetry.paired.add("users", "get", 0.010, 0.002, None)
    _, found = samples(telemetry, scrape)
    marked = [sample for sample in found if sample.exemplar is not None]
    assert marked
    for sample in marked:
        assert sample.name.endswith("_bucket")
        assert sample.labels["db_collection_name"] == "tasks"
        assert sample.exemplar.labels == {"trace_id": f"{TRACE:032x}"}
        assert sample.exemplar.value <= float(sample.labels["le"])
    assert {round(sample.exemplar.value, 3) for sample in marked} >= {0.19}
    plain, _ = scrape.text("text/plain")
    assert b"trace_id" not in plain
