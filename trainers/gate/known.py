"""Whether feedback tells how well the champion does, from the rows themselves: where hardly anything is called right,
people report what goes wrong, and a candidate that mends some of it shows nothing."""

from __future__ import annotations

from collections.abc import Iterable

from streams.monitor.known import LAST_OPINIONS, LEAST_RIGHT
from trainers.rows import Row


def unknown_because(rows: Iterable[Row]) -> str:
    """Why live quality is not known, "" where it is: of the last opinions under 1 in 20 says that it was right.

    Opinions on a random sample of answers, or on all of them, tell how often it is right, however seldom that is.
    """
    said = sorted((r for r in rows if r.was_right is not None and r.picked), key=lambda r: r.order)[-LAST_OPINIONS:]
    right = sum(bool(row.was_right) for row in said)
    if not said or right >= LEAST_RIGHT * len(said):
        return ""
    return (
        f"live quality is unknown: {right} of the last {len(said)} opinions say that an answer was right; "
        "have right answers confirmed too, or rate a random sample (tag `sampled`: random, or all) of answers"
    )
