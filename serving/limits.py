"""How many requests may be under way, by the engine's slots: what is more is turned away (429) at once.

An engine's queue is bounded by `most_pending`; the doors and Ray Serve let as many through, and a few beside them.
"""

from __future__ import annotations

# Batches of all slots: whoever comes last waits for seven others.
BATCHES = 8
# Feedback, lists and probes beside the answers.
BESIDE_ANSWERS = 64


def most_pending(slots: int) -> int:
    """Answers that one replica may have queued or running."""
    return BATCHES * slots


def most_requests(slots: int) -> int:
    """Requests of any kind that one replica may have."""
    return most_pending(slots) + BESIDE_ANSWERS
