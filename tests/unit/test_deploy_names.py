"""Names of instruments: on the page that documents them, and as Prometheus has them."""

import re

import pytest

from crossfade import prometheus
from crossfade.telemetry import INSTRUMENTS, Counter
from docs import generate


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("crossfade.reads", "{read}", "counter", "crossfade_reads_total"),
        ("a.total.sent", "By", "counter", "a_sent_bytes_total"),
        ("db.client.operation.duration", "s", "histogram", "db_client_operation_duration_seconds"),
        ("crossfade.read_percent", "%", "gauge", "crossfade_read_percent"),
        ("crossfade.lag", "%", "gauge", "crossfade_lag_percent"),
        ("crossfade.epoch", "1", "gauge", "crossfade_epoch_ratio"),
        ("a.ratio.b", "1", "gauge", "a_b_ratio"),
        ("a", "1", "counter", "a_total"),
        ("crossfade.dead_letters", "{document}", "gauge", "crossfade_dead_letters"),
        ("9.lives..left", "{life}", "gauge", "_9_lives_left"),
    ],
)
def test_the_name_in_prometheus(name, unit, kind, expected):
    assert prometheus.family(name, unit, kind) == expected


def test_a_unit_without_a_word_is_refused():
    with pytest.raises(ValueError, match=r"crossfade\.size.*KiBy"):
        prometheus.family("crossfade.size", "KiBy", "gauge")


def test_the_samples_of_a_histogram():
    assert prometheus.series("a.b", "s", "histogram") == (
        "a_b_seconds_bucket",
        "a_b_seconds_count",
        "a_b_seconds_sum",
    )
    assert prometheus.series("a.b", "s", "gauge") == ("a_b_seconds",)


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("db.collection.name", "db_collection_name"),
        ("error-type", "error_type"),
        ("4xx", "key_4xx"),
    ],
)
def test_the_name_of_a_label(attribute, expected):
    assert prometheus.label(attribute) == expected


def test_no_two_instruments_share_a_name_in_prometheus():
    names = [
        name for item in INSTRUMENTS for name in prometheus.series(item.name, item.unit, item.kind)
    ]

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z_][a-z0-9_]*", name) for name in names)
    for item in INSTRUMENTS:
        assert len(set(prometheus.labels(item.labels))) == len(item.labels)


# --- the page ----------------------------------------------------------------------------------


def test_the_table_of_the_page_is_current():
    text = generate.TARGET.read_text()

    assert generate.with_table(text) == text, "run `make docs`"


def test_an_instrument_that_is_not_on_the_page_is_noticed(monkeypatch, capsys):
    novel = Counter("crossfade.novel", "{thing}", "New | here", ("crossfade.kind",))
    monkeypatch.setattr(generate, "INSTRUMENTS", (*INSTRUMENTS, novel))
    monkeypatch.setattr("sys.argv", ["generate.py", "--check"])

    assert generate.main() == 1
    assert "make docs" in capsys.readouterr().out
    assert generate.table().splitlines()[-1] == (
        r"| `crossfade.novel` | counter | `{thing}` | `crossfade.kind` | New \| here "
        "| `crossfade_novel_total` |"
    )


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="marks"):
        generate.with_table(f"{generate.BEGIN} and no end")
