"""Which unfinished job goes on from weights that somebody wants to delete. Rooms that know nothing of jobs ask too, in
the transaction that deletes, so that no job comes in between.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, exists, literal, select

from finetuned_service.errors import ResourceInUse
from finetuned_service.storage.schema import jobs

_CONTINUING = jobs.alias("continuing")


def _goes_on_from(beginning: ColumnElement[str]) -> ColumnElement[bool]:
    """Of a row of `_CONTINUING`: whether it is unfinished and names weights that begin so. It is asked of the record's text:
    one that this build cannot read may need them as well.
    """
    named = literal('"continue_from":"').concat(beginning)
    return and_(_CONTINUING.c.end_time.is_(None), _CONTINUING.c.document.contains(named))


IS_CONTINUED = exists().where(
    _goes_on_from(
        literal("tenants/").concat(jobs.c.tenant).concat("/jobs/").concat(jobs.c.id).concat(literal('"'))
    )
)
"""Of a row of jobs: whether an unfinished job goes on from the checkpoint that it has kept."""


def refuse_continued(connection: Connection, name: str, *, whole_adapter: bool = False) -> None:
    """See that no unfinished job goes on from the weights.

    Args:
        connection: of the deleting transaction.
        name: of a version, or of a job whose last good checkpoint they are.
        whole_adapter: it is an adapter's, for all of its versions.

    Raises:
        ResourceInUse: naming a job that does.
    """
    beginning = literal(f"{name}/versions/" if whole_adapter else f'{name}"')
    query = select(_CONTINUING.c.tenant, _CONTINUING.c.id).where(_goes_on_from(beginning)).limit(1)
    row = connection.execute(query).one_or_none()
    if row is not None:
        user = f"tenants/{row.tenant}/jobs/{row.id}"
        raise ResourceInUse(
            f"{name} is what {user} goes on from; cancel the job or wait for its end",
            metadata={"used_by": user},
        )
