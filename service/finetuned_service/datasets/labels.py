"""The same labels on both sides: what is trained on is measured, and what is measured was trained on."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 10


def differing_labels(trained: Iterable[str], evaluated: Iterable[str]) -> str:
    """What is wrong with labels of held-out rows beside those trained on; "" if they are the same."""
    known, measured = set(trained), set(evaluated)
    said: list[str] = []
    if missing := known - measured:
        said.append(
            f"lacks the {listed(missing)}, so nothing would tell how well they are learned; add rows of them"
        )
    if strange := measured - known:
        said.append(
            f"has the {listed(strange)}, which no training row has and no model could learn; add such rows to the "
            "training data, or remove them"
        )
    return "; ".join(said)


def listed(labels: Iterable[str]) -> str:
    """`labels 'a', 'b' and 3 more`."""
    names = sorted(labels)
    shown = ", ".join(repr(name[:60]) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{'label' if len(names) == 1 else 'labels'} {shown}{more}"
