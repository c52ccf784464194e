"""All scenarios, in the order in which `make model` runs them."""

from tests.model.scenarios.authority import AUTHORITY
from tests.model.scenarios.coordinators import COORDINATORS
from tests.model.scenarios.forward import FORWARD
from tests.model.scenarios.reverse import REVERSE
from tests.model.scenarios.scenario import Scenario
from tests.model.scenarios.small import SMALL

SCENARIOS: tuple[Scenario, ...] = (*SMALL, *FORWARD, *REVERSE, *AUTHORITY, *COORDINATORS)
