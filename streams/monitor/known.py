"""Whether live feedback tells how well a model does, and what would help where it does not.

An application that speaks of failures alone says nothing of how often its model is right: neither a drift nor a
comparison may rest on it. The rule stands here and, for analysts, in the view `tuneloop.quality_known`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams.clickhouse import rows

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# Of so many opinions, the last, at least this share must say that an answer was right.
LAST_OPINIONS, LEAST_RIGHT = 500, 1 / 20


@dataclass(frozen=True)
class Quality:
    """Whether a model's quality is known; `why` says what is missing and what would help, "" where it is known.

    `live` is the share of right answers of the version that serves, over its last opinions, each person counted alike;
    None where it has none, or where quality is unknown. `share_right` is of all the model's last `opinions`.
    """

    known: bool
    live: float | None
    why: str
    opinions: int = 0
    share_right: float | None = None


def judged(opinions: int, said_right: int, answers_with_feedback: int, live: float | None = None) -> Quality:
    """What these opinions, `said_right` of which call the answer right, come to.

    `answers_with_feedback` counts answers of which anything was said, also what scores none (a long text).
    """
    share = said_right / opinions if opinions else None
    if share is not None and share >= LEAST_RIGHT:
        return Quality(True, live, "", opinions, share)
    if share is not None:
        why = (
            f"quality is unknown: {said_right} of the last {opinions} opinions say that an answer was right, under "
            f"1 in {1 / LEAST_RIGHT:.0f}; send right answers too, or feedback on a random sample of all"
        )
    elif answers_with_feedback:
        why = (
            f"quality is unknown: of {answers_with_feedback} answers with feedback none says whether it was right; "
            "send the quality metric for right and wrong answers, or short demonstrations"
        )
    else:
        why = "quality is unknown: nothing was said of any answer yet; send feedback on right and wrong ones"
    return Quality(False, None, why, opinions, share)


def quality_of(client: Client, model: str) -> Quality:
    """Whether this model's quality is known by what has landed. Raises `ClickHouseError`."""
    found = rows(
        client,
        "SELECT opinions, said_right, answers_with_feedback, live FROM tuneloop.quality_known "
        "WHERE model = {model:String}",
        model=model,
    )
    if not found:
        return judged(0, 0, 0)
    (row,) = found
    return judged(row["opinions"], row["said_right"], row["answers_with_feedback"], row["live"])
