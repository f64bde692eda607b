"""Which faults a run meets: each kind once in a drawn order, then more of them by weight. A function of the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from streams import failpoints
from tests.faults import faults as f
from tests.faults.faults import LANES_OF, Fault


@dataclass(frozen=True)
class Kind:
    """A kind of fault: the lanes that it may strike (the run needs one of them) and how often it is drawn."""

    name: str
    lanes: tuple[str, ...]
    fault: Fault
    weight: float = 1.0


@dataclass(frozen=True)
class Strike:
    """One fault of a run."""

    kind: Kind
    lane: str


ALL = ("copy", "prepare", "sink", "work")
KINDS = (
    *(
        Kind(f"kill at {name}", LANES_OF[name.partition(".")[0]], f.kill_at(name))
        for name in failpoints.NAMES
        if name.partition(".")[0] in LANES_OF
    ),
    *(
        Kind(f"kill at {name}", ("prepare",), f.kill_the_erasure_at(name))
        for name in failpoints.NAMES if name.startswith("erase.")
    ),
    Kind("erase while preparing", ("prepare",), f.erase_while_preparing, 2),
    Kind("kill", ALL, f.kill, 4),
    Kind("kill twice", ALL, f.kill_twice, 2),
    Kind("stop past the session", ALL, f.stop, 2),
    Kind(
        "stop in a transaction", ("copy", "prepare", "work"),
        f.stop_at("transact.handled", "transact.produced", "transact.offsets_sent", "job.asked", "job.offsets_sent"), 3,
    ),
    Kind("stop in a landing", ("sink",), f.stop_at("sink.gathered", "sink.written"), 2),
    Kind("kill the broker in EndTxn", ("copy",), f.kill_broker, 2),
    Kind("stop the broker in EndTxn", ("copy",), f.stop_broker, 2),
    Kind("lose the answer to EndTxn", ("copy",), f.lose("EndTxn"), 2),
    Kind("lose the answer to TxnOffsetCommit", ("copy",), f.lose("TxnOffsetCommit"), 2),
    Kind("lose the answer to OffsetCommit", ("sink",), f.lose("OffsetCommit")),
    Kind("lose the answer to Produce", ("copy",), f.lose("Produce")),
    Kind("storm of joins and leaves", ("copy",), f.storm),
    Kind("job longer than its poll interval", ("work",), f.long_job),
    Kind("flood of poison", ("copy", "prepare", "sink"), f.flood),
    Kind("kill in a loop", ("sink",), f.kill_in_a_loop),
    Kind("replay from the beginning", ("sink",), f.replay),
    Kind("disk full", ("prepare",), f.disk_full),
    Kind("kill ClickHouse", ("sink",), f.kill_clickhouse),
)  # fmt: skip
# Those of putting dead letters back are no loop's: `tests/integration/test_replay.py` kills there.
FAILPOINTS = [name for name in failpoints.NAMES if not name.startswith("dlq.")]
BY_NAME = {kind.name: kind for kind in KINDS}


def drawn(seed: int, count: int, lanes: Sequence[str] = ALL) -> list[Strike]:
    """`count` strikes: as far as they reach, every kind once; then by weight."""
    random = Random(seed)
    kinds = [kind for kind in KINDS if set(kind.lanes) & set(lanes)]
    first = random.sample(kinds, len(kinds))[:count]
    more = random.choices(kinds, [kind.weight for kind in kinds], k=count - len(first))
    return [
        Strike(kind, random.choice([lane for lane in kind.lanes if lane in lanes])) for kind in [*first, *more]
    ]
