"""`tuneloop forget`: erase one subject's data, and wait for the receipt."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from deploy.addresses import identity_secret
from deploy.cli.commands import publish
from deploy.cli.context import context
from deploy.cli.output import CommandError, Format, err, show
from schemas.events import ErasureCompleted, ErasureRequested
from schemas.identity import erasure_id, key_id, subject_hash
from streams.erase.job import asked_under, receipt


def register(app: typer.Typer) -> None:
    app.command()(forget)


def forget(
    subject: Annotated[
        str, typer.Argument(help="the subject id: safety_identifier, user, or what an import named; - = ask for it")
    ] = "-",
    requested_by: Annotated[str, typer.Option(help="who asks; kept with the request until it is carried out")] = "",
    wait_s: Annotated[float, typer.Option(help="how long to wait for the receipt; 0 = do not wait")] = 900.0,
    format: Format = Format.table,
) -> None:
    """Erase everything of one subject: topics, shards, tables, dead letters, and their files on disk.

    What still arrives under this id afterwards is kept out. Prints the receipt, which comes only after compaction;
    asking again erases again and gives a new one.

    An id in the command line stays in the shell's history, and everybody on the machine sees it while the command runs:
    leave it out, and it is asked for, or read from standard input.
    """
    subject = subject_given(subject)
    secret = identity_secret(context.settings)
    if others := asked_under(context.bootstrap) - {key_id(secret)}:
        raise CommandError(
            f"erasures here were asked for under identity secret {', '.join(sorted(others))}, this is "
            f"{key_id(secret)}: name the file of that one by identity_secret_file"
        )
    hashed = subject_hash(secret, subject)
    identity = erasure_id(hashed)
    before = receipt(context.bootstrap, identity)
    request = ErasureRequested(
        erasure_id=identity, subject_hash=hashed, key_id=key_id(secret), subject_id=subject, requested_by=requested_by
    )
    publish(context.bootstrap, request)
    err.print(f"{identity} was asked for")
    if wait_s > 0:
        show([_row(_awaited(identity, before, wait_s))], format)


def subject_given(argument: str) -> str:
    """The subject that an argument names, or that a person or a pipe gives in its place. Raises `CommandError`."""
    subject = argument
    if argument == "-":
        subject = typer.prompt("subject", err=True) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    if not subject.strip():
        raise CommandError("which subject? An empty id is what everything has that belongs to nobody")
    try:
        subject.encode()
    except UnicodeEncodeError:
        raise CommandError("the subject is no UTF-8, and no record of anybody's is anything else") from None
    return subject


def _awaited(identity: str, before: ErasureCompleted | None, wait_s: float) -> ErasureCompleted:
    """The receipt that is newer than `before`. Raises `CommandError`."""
    deadline = time.monotonic() + wait_s
    with err.status(f"erasing; follow it with `tuneloop logs erase` ({identity})"):
        while time.monotonic() < deadline:
            found = receipt(context.bootstrap, identity)
            if found is not None and found != before:
                return found
            time.sleep(1.0)
    raise CommandError(
        f"no receipt for {identity} within {wait_s:.0f} s: is `erase` up (`tuneloop status`), and are `prepare`, "
        "`join-feedback` and `monitor`, which have to pass the deletions? It goes on by itself."
    )


def _row(receipt: ErasureCompleted) -> dict[str, object]:
    return {
        "erasure": receipt.erasure_id, "records": sum(receipt.tombstones.values()), "topics": receipt.tombstones,
        "shards_rewritten": receipt.shards, "rows_erased": receipt.rows, "seconds": round(receipt.seconds, 1),
        "adapters_that_learned_from_them": [f"{one.model}@{one.version}" for one in receipt.adapters if one.version],
        "candidates_that_learned_from_them": [one.digest[:12] for one in receipt.adapters if not one.version],
        "jobs_under_way": receipt.jobs, "adapters_deleted": receipt.deleted, "places_in_logs": receipt.log_places,
    }  # fmt: skip
