"""Whether two engines give the same adapter the same logits (`Engine.fingerprint`). Pure."""

from __future__ import annotations

from collections.abc import Sequence


def same_fingerprint(a: Sequence[float], b: Sequence[float], tolerance: float = 1e-3) -> bool:
    """Whether two fingerprints agree: no difference exceeds `tolerance` times the largest logit (or 1).

    The default is for float32 on both sides: other CPUs, thread counts and batch sizes stay far below it, while two
    adapters that hardly differ exceed it. Of other number types (trained on a GPU, served on a CPU) `tolerance` is
    0.05, which no longer tells such adapters apart.
    """
    if len(a) != len(b) or not a:
        return False
    largest = max(1.0, *(abs(value) for value in (*a, *b)))
    return all(abs(x - y) <= tolerance * largest for x, y in zip(a, b, strict=True))


def tolerance(*dtypes: str) -> float:
    """What fingerprints of these number types may differ by (`same_fingerprint`); "" = not said, taken for float32."""
    return 1e-3 if set(dtypes) <= {"float32", ""} else 5e-2
