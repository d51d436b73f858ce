"""TensorBoard's event files of a job, as callers get them; `training/tensorboard.py` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetuned_service.errors import InvalidField, JobStateConflict, NotFound
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.store import JobStore
from finetuned_service.jobs.task import TENSORBOARD
from finetuned_service.storage.chunks import FileChunk, chunks_of

FILE_NAME = "events.out.tfevents.{:06}"
"""With a number, in the order of writing: TensorBoard reads files in the order of their names, and goes to no smaller one. The names on the disk tell of the machine that wrote them."""


@dataclass(frozen=True, slots=True)
class EventFiles:
    """Those of the jobs of a store."""

    store: JobStore
    directory: Path
    """One directory a job."""

    def chunks(self, tenant: str, job_id: str) -> Iterator[FileChunk]:
        """The files of a job, the oldest first, piece by piece, as far as they are written when their turn comes.

        The last record of a job that runs may be a part of one; readers wait there for more.

        Raises:
            NotFound: there is no such job; also in the middle, where it is deleted meanwhile.
            InvalidField: it is a Quantize run.
            JobStateConflict: it has written none.
        """
        job = self.store.get(tenant, job_id)
        if not isinstance(job.spec, TrainSpec):
            raise InvalidField.one(
                "name",
                f"is {job.name}, a Quantize run; only TrainJobs have figures for TensorBoard. Name one",
            )
        # Their names begin with the second of their making.
        files = sorted((self.directory / job.id / TENSORBOARD).glob("events.out.tfevents.*"))
        if not files:
            raise JobStateConflict(
                f"{job.name} is {job.state} and has written no figures for TensorBoard"
                + (": it never trained" if job.state.final else " yet: ask again once it trains"),
                metadata={"state": job.state},
            )
        return self._read(job.name, files)

    @staticmethod
    def _read(job: str, files: list[Path]) -> Iterator[FileChunk]:
        for number, path in enumerate(files, 1):
            try:
                file = path.open("rb")
            except FileNotFoundError as error:
                raise NotFound.resource(job) from error
            with file:
                yield from chunks_of(FILE_NAME.format(number), file)
