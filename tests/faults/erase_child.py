"""What the erasing process has its child do: the product's erasure, for a machine where `prepare` alone keeps words.

The sink here reads feedback only, and nobody joins. A file is taken for an orphan at the pace of the machine. Failpoints
that stand in the file `ONCE` are those of this one process: the one that takes its place does not find them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from streams import failpoints
from streams.erase import child, keepers, shards
from tests.stores import secret_file

ONCE = "erase.once"


def make(bootstrap: str, clickhouse: str, artifacts: str, orphaned_after_s: float) -> Callable[[Any, Any], Any]:
    keepers.KEEPERS = ("prepare",)
    shards.ORPHANED_AFTER_S = orphaned_after_s
    once = Path(artifacts).parent / ONCE
    if once.exists():
        failpoints.arm(once.read_text())
        once.unlink()
    return child.make(bootstrap, clickhouse, [], artifacts, "", str(secret_file(Path(artifacts).parent)))
