"""The same partitions as an Apache Beam pipeline: the engine that is there does the work.

Each element is the number of a partition. Whoever gets it claims it in the table of jobs and
copies it as any worker does, so Beam's own retries, and a second run of the pipeline, do
nothing twice. Workers read the settings as every process does: from the file and the
environment that they have. The extra `crossfade[beam]` brings what this needs.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

from crossfade.apart import Apart, apart
from crossfade.jobs.backfill import work
from crossfade.jobs.work import Pacing
from crossfade.loading import load


class CopyPartition(beam.DoFn):  # type: ignore[misc]
    """Copies the partition of a number, of a group's job. `config`: the settings file, as the
    worker sees it."""

    def __init__(self, job: int, group: str, config: str | None) -> None:
        self._job = job
        self._group = group
        self._config = config

    def setup(self) -> None:
        """Connected once for all elements that this worker gets."""
        self._loop = asyncio.new_event_loop()
        self._resources = AsyncExitStack()
        self._own = self._loop.run_until_complete(self._connected())

    async def _connected(self) -> Apart:
        settings = load(None if self._config is None else Path(self._config))
        own = apart(settings, workers=1, settles=False, group=self._group)
        return await self._resources.enter_async_context(own)

    def process(self, number: int) -> Iterable[int]:
        """Yields the number when the partition is done."""
        self._loop.run_until_complete(self._copy(number))
        yield number

    async def _copy(self, number: int) -> None:
        job = await self._own.both.jobs.get(self._job)
        pacing = Pacing(workers=1, number=number)
        await work(self._own.both, job, pacing=pacing, budget=self._own.budget).run()

    def teardown(self) -> None:
        self._loop.run_until_complete(self._resources.aclose())
        self._loop.close()


def run(
    job: int,
    numbers: Iterable[int],
    config: str | None,
    runner: str,
    options: Sequence[str],
    group: str,
) -> None:
    """Runs the pipeline to its end. The job is ended by whoever started it."""
    made = PipelineOptions([f"--runner={runner}", *options])
    made.view_as(SetupOptions).save_main_session = False
    with beam.Pipeline(options=made) as pipeline:
        _ = (
            pipeline
            | "Partitions" >> beam.Create(list(numbers))
            # Without it one worker would get them all.
            | "Spread" >> beam.Reshuffle()
            | "Copy" >> beam.ParDo(CopyPartition(job, group, config))
        )
