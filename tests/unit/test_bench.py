"""The bench's arithmetic: paired ratios, and silence where two identical cases differ."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from loadtests import shadow
from loadtests.bench.measure import (
    Case,
    Comparison,
    Group,
    Sample,
    cpu_seconds,
    orders,
    paired,
    with_children,
)
from loadtests.bench.priority import LOWEST, give_way
from loadtests.telemetry import interval, verdict


def sample(server: float, rate: float = 1.0) -> Sample:
    return Sample(rate=rate, p50=1.0, p99=1.0, caller=10.0, server=server, store=1.0)


def test_ratios_are_of_the_same_round():
    drifting = [sample(10), sample(20), sample(400)]
    half = [sample(5), sample(10), sample(200)]
    assert paired(half, drifting, "server") == 0.5
    assert paired(half, drifting, "path") == pytest.approx(20 / 30)
    nothing = paired(half, [sample(0)] * 3, "server")
    assert nothing != nothing


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_no_case_is_favoured_by_its_place_or_by_what_came_before_it(count):
    rows = orders(count)
    for place in range(count):
        assert len(set(Counter(row[place] for row in rows).values())) == 1
        assert {row[place] for row in rows} == set(range(count))
    after = Counter(pair for row in rows for pair in pairwise(row))
    assert len(after) == count * (count - 1)
    assert len(set(after.values())) == 1


def test_what_is_done_behind_a_burst_counts():
    class Burst:
        def run(self, ops: int) -> dict[str, float]:
            return {"ops": ops, "seconds": 1.0, "cpu": 0.0, "p50": 0.0, "p99": 0.0}

    caller: Any = Burst()
    ended = threading.Event()
    worker = threading.Thread(target=lambda: [None for _ in iter(ended.is_set, True)])
    worker.start()
    try:
        found = []
        for settle in (0.0, 0.3):
            one = Case("a", caller, os.getpid())
            Group("g", [one], [], 1, list, settle).round(0)
            found.append(one.samples[0].server)
    finally:
        ended.set()
        worker.join()
    assert found[1] > found[0]


def group(again: float) -> Group:
    caller: Any = None
    cases = [
        Case("a", caller, 1, [sample(100, rate=50)]),
        Case("a again", caller, 1, [sample(again, rate=50)]),
        Case("b", caller, 1, [sample(110, rate=40)]),
    ]
    comparisons = [Comparison("b", "a", ("server", "rate")), Comparison("c", "a", ("server",))]
    return Group("g", cases, comparisons, 10, list)


def test_a_ratio_is_said_only_where_the_control_agrees():
    server, rate = group(again=101).ratios()
    assert (server.case, server.base, server.metric) == ("b", "a", "server")
    assert server.text == "x1.10 (A/A x1.01)"
    assert rate.text == "x0.80 (A/A x1.00)"
    server, rate = group(again=120).ratios()
    assert server.text == "not resolved (A/A x1.20)"
    assert rate.resolved
    assert [r["resolved"] for r in group(again=120).to_json()["ratios"]] == [False, True]


def test_cpu_of_a_process_and_its_children_is_seen():
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", busy],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in with_children(os.getpid())
        spent = cpu_seconds([child.pid])
        assert 0.3 <= spent < 30
        time.sleep(0.2)
        assert cpu_seconds([child.pid]) - spent < 0.15  # it waits: nothing is spent
        child.kill()
    assert cpu_seconds([child.pid]) == 0.0


def test_a_telemetry_target_is_met_missed_or_not_resolved():
    steady = [0.97, 0.98, 0.99] * 5
    assert verdict(steady, 0.95, 1.01, 0.04)[0]
    assert "not resolved" in verdict(steady, 0.95, 1.05, 0.04)[1], "the control differs"
    met, told = verdict([0.8, 1.1] * 8, 0.95, 1.0, 0.04)
    assert (met, "not resolved" in told) == (False, True), "so do the rounds"
    met, told = verdict([0.90, 0.92] * 8, 0.95, 1.0, 0.04)
    assert (met, "missed" in told) == (False, True)
    met, told = verdict([0.99], 0.95, 1.0, 0.04)
    assert met, "one round says what it says"


def test_the_interval_of_a_median_cuts_off_what_chance_would():
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert interval(range(1, 17)) == (5, 12), "the fifth of sixteen: 92 %"


def test_every_phase_is_at_every_place_of_a_round_equally_often():
    phases = [shadow.Phase(name, 0.0) for name in "abc"]
    rounds = [shadow.in_turn(phases, number) for number in range(12)]
    for place in range(3):
        names = [order[place].name for order in rounds]
        assert {name: names.count(name) for name in "abc"} == {"a": 4, "b": 4, "c": 4}


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own there")
def test_a_process_gives_way_with_all_its_threads_and_its_session():
    threads = (
        "import threading\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print(flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", threads],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        give_way([process.pid, 2**22])  # the second never was
        found = [int(each.name) for each in Path(f"/proc/{process.pid}/task").iterdir()]
        assert len(found) == 2
        assert {os.getpriority(os.PRIO_PROCESS, each) for each in found} == {LOWEST}
        session = Path(f"/proc/{process.pid}/autogroup")
        assert not session.exists() or session.read_text().split()[-1:] == [str(LOWEST)]
        process.kill()
