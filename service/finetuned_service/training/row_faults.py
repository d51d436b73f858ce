"""What is wrong with the rows of a job: collected while they are read, refused all at once. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from finetuned_service.errors import FinetunedError, InvalidData, Violation


class RowFaults:
    """Counts the rows that cannot be used and keeps the first 20 with their places."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []
        self._rows = 0

    def add(self, where: str, description: str) -> None:
        """One row that cannot be used; `where` names it, for example "line 3"."""
        self._rows += 1
        if len(self._violations) < FinetunedError.MAX_VIOLATIONS:
            self._violations.append(Violation(where, description))

    def refuse(self) -> None:
        """Raise InvalidData for all of them, if there are any: the first 20, and how many there are."""
        if not self._rows:
            return
        first = f"{self._violations[0].field} {self._violations[0].description}"
        raise InvalidData(
            first if self._rows == 1 else f"{self._rows} rows cannot be used; the first: {first}",
            violations=self._violations,
            metadata={"invalid_rows": str(self._rows)},
        )


def too_long(found_tokens: int, limit: int) -> str:
    """What is said of a row that LongRows.REJECT does not let pass."""
    return (
        f"has {found_tokens} tokens; max_row_tokens allows {limit}. Shorten it, raise max_row_tokens, or "
        "choose long_rows TRUNCATE or DROP"
    )


def refuse_none_held_out(held_out: Sequence[object], dropped_rows: int, most_tokens: int | None) -> None:
    """Refuse an eval_dataset whose rows are all left out: the job would never be measured, nor stopped early.

    Args:
        held_out: those of its rows that can be used.
        dropped_rows: the others.
        most_tokens: `max_row_tokens`.

    Raises:
        InvalidData: there are only others.
    """
    if held_out:
        return
    raise InvalidData(
        f"eval_dataset: all {dropped_rows} rows are longer than max_row_tokens ({most_tokens}) and long_rows leaves them "
        "out, so nothing would be evaluated; raise max_row_tokens, shorten the rows, or unset eval_dataset to hold out a "
        "part of the training rows"
    )
