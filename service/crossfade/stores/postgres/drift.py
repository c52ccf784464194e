"""What a database has otherwise than models, migrations and mapping say."""

from crossfade.mapping import Mappings
from crossfade.stores.postgres import check as catalog
from crossfade.stores.postgres.evolve import Evolution
from crossfade.stores.postgres.lanes import Lanes


async def schema_drift(
    evolution: Evolution, lanes: Lanes, mappings: Mappings, *, timeout: float
) -> list[str]:
    """One line each; none where everything is as it should be. Changes nothing."""
    at, heads = await evolution.current(), evolution.heads()
    found = [f"missing: migration {name}" for name in sorted(heads - at)]
    found += [f"unknown here: migration {name}" for name in sorted(at - heads)]
    found += await evolution.differences()
    found += await catalog.differences(lanes, mappings, timeout=timeout)
    return found
