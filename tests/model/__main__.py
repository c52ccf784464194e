"""`python -m tests.model`: runs every scenario with its full bounds and says what each comes to."""

import argparse
import sys
import time
from collections.abc import Sequence

from tests.model.engine import Outcome, Verdict
from tests.model.scenarios import SCENARIOS
from tests.model.scenarios.scenario import Scenario


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    chosen = [
        scenario
        for scenario in SCENARIOS
        if any(scenario.name.startswith(name) for name in options.names or [""])
        and not (options.quick and scenario.slow)
    ]
    if not chosen:
        print("model: no scenario has such a name", file=sys.stderr)
        return 2
    faults = 0
    started = time.monotonic()
    for scenario in chosen:
        begun = time.monotonic()
        outcome = scenario.run()
        print("\n".join(report(scenario, outcome, time.monotonic() - begun)), flush=True)
        faults += scenario.fault(outcome) is not None
    seconds = time.monotonic() - started
    print(f"{len(chosen)} scenarios in {seconds:.0f} s, {faults} not as expected")
    return 1 if faults else 0


def report(scenario: Scenario, outcome: Outcome, seconds: float) -> list[str]:
    size = f"{outcome.states} states, {outcome.resting} at rest, {seconds:.1f} s"
    lines = [f"{scenario.name}: {outcome.verdict.value}, {size}"]
    if outcome.verdict is Verdict.VIOLATED:
        lines += [f"  {number:2}. {name}" for number, name in enumerate(outcome.trace, 1)]
        lines.append(f"      {outcome.wrong}")
    if fault := scenario.fault(outcome):
        lines.append(f"  NOT AS EXPECTED: {fault}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.model",
        description="The models of the protocol: each scenario HOLDS, in all states it can reach, "
        "or is VIOLATED by the trace that is printed.",
        epilog="Exit codes: 0 every verdict is the expected one; 1 one is not; 2 no such scenario.",
    )
    parser.add_argument(
        "names", nargs="*", help="only scenarios whose names begin so, as A11 or M1"
    )
    parser.add_argument("--quick", action="store_true", help="only those that the tests run, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
