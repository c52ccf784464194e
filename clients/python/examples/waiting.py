"""The same client without a loop, shared by threads: each counts a visit.

CROSSFADE_TARGET says where the sidecar is (127.0.0.1:7600 without it).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from crossfade_client import Crossfade, Increment, Query

TARGET = os.environ.get("CROSSFADE_TARGET", "127.0.0.1:7600")


def main() -> None:
    site = f"example-{uuid4()}"
    with Crossfade(TARGET, timeout=20.0) as crossfade, ThreadPoolExecutor(4) as threads:

        def visit(number: int) -> None:
            crossfade.merge(f"visits/{site}-{number % 2}", {"site": site, "n": Increment(1)})

        list(threads.map(visit, range(8)))

        pages = Query("visits").where("site", "==", site)
        print("pages", crossfade.count(pages), "visits", crossfade.sum(pages, "n"))
        with crossfade.batch() as batch:  # all or none
            for page in crossfade.query(pages):
                batch.delete(page.path, update_time=page.update_time)
        print("left", crossfade.count(pages))


main()
