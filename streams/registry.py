"""The model registry's rules: pure functions from a state and an event to the next state and a decision.

Versions are numbered from 1, once per candidate digest; version 0 is the base itself. Every change raises
`epoch`; a command that names an older epoch is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import msgspec

from schemas.events import (
    DecisionMade,
    ErasureCompleted,
    HoldRequested,
    ModelStateChanged,
    ReviewReached,
    RollbackRequested,
    VerdictReached,
    Version,
)

KEPT_VERSIONS = 50


@dataclass(frozen=True)
class Outcome:
    """The next state (None = unchanged) and the line for the history (None = nothing worth keeping)."""

    state: ModelStateChanged | None
    decision: DecisionMade | None


def find(state: ModelStateChanged | None, version: int) -> Version | None:
    versions = state.versions if state else []
    return next((entry for entry in versions if entry.version == version), None)


def anchor_of(state: ModelStateChanged | None) -> Version | None:
    """The last version up to the champion that was shown to be better than what served before it, else the champion.

    What later ones may lose is counted from it, not from one another.
    """
    champion = find(state, state.champion) if state else None
    if state is None or champion is None:
        return None
    shown = [entry for entry in state.versions if entry.superior and entry.version <= champion.version]
    return max(shown, key=lambda entry: entry.version, default=champion)


def on_verdict(
    state: ModelStateChanged | None, verdict: VerdictReached, correlation_id: str, erasures: Iterable[str] = (),
    judges: Collection[str] = ("gate",),
) -> Outcome:
    """Promote a candidate that passed against the champion of today; refuse any other that is not void.

    `erasures` are those whose receipts name it, beside those that its verdict knew of. `judges` are those whose word
    counts.
    """
    if verdict.judge not in judges:
        reason = f"judged by {verdict.judge}, who is none of the policy's judges: {', '.join(judges) or '-'}"
        return Outcome(None, DecisionMade(model=verdict.model, decision="command-refused", reason=reason))
    known = next((entry for entry in (state.versions if state else []) if entry.digest == verdict.digest), None)
    if known and known.job_id == verdict.job_id:  # a replay: this digest has its number already
        return Outcome(None, None)
    if verdict.void:
        return Outcome(None, _decision("void", verdict.reason, verdict, state))
    if verdict.failed:  # it says nothing of the candidate
        return Outcome(None, _decision("failed", verdict.reason, verdict, state))
    if known:  # the conductor waits for a decision on every job
        reason = f"the same adapter is version {known.version} already"
        return Outcome(None, _decision("refused", reason, verdict, state))
    champion = state.champion if state else 0
    if not verdict.passed:
        return Outcome(None, _decision("refused", verdict.reason, verdict, state))
    if verdict.champion_version != champion:
        reason = f"judged against version {verdict.champion_version}, but version {champion} serves now"
        return Outcome(None, _decision("superseded", reason, verdict, state))
    if state is not None and state.held:
        return Outcome(None, _decision("deferred", f"it passed, but the model is held: {state.held}", verdict, state))
    version = 1 + max((entry.version for entry in state.versions), default=0) if state else 1
    entry = Version(
        version=version, digest=verdict.digest, path=verdict.path, base=verdict.base,
        base_digest=verdict.base_digest, job_id=verdict.job_id, fingerprint=verdict.fingerprint,
        new_data=verdict.new_data, replay_data=verdict.replay_data, correlation_id=correlation_id,
        drift_id=verdict.drift_id, erasures=sorted({*verdict.erasures, *erasures}), dtype=verdict.dtype,
        probe=verdict.probe, seen=verdict.seen, superior=verdict.superior, newest_row_ms=verdict.newest_row_ms,
    )
    versions = [*(_retired(old, champion) for old in (state.versions if state else [])), entry]
    after = ModelStateChanged(
        model=verdict.model, base=verdict.base, epoch=(state.epoch if state else 0) + 1, champion=version,
        previous=champion, shares={str(version): 1.0}, versions=versions[-KEPT_VERSIONS:],
        change="promoted", reason=verdict.reason, held=state.held if state else "",
    )
    line = _decision("promoted", verdict.reason, verdict, after, version)
    kept = {one.digest for one in after.versions}
    gone = [adapter_path(one.digest) for one in versions[:-KEPT_VERSIONS] if one.digest not in kept]
    return Outcome(after, msgspec.structs.replace(line, deletes=gone))


def _retired(entry: Version, champion: int) -> Version:
    return msgspec.structs.replace(entry, status="retired") if entry.version == champion else entry


def _decision(
    decision: str, reason: str, verdict: VerdictReached, state: ModelStateChanged | None, version: int = 0
) -> DecisionMade:
    has_it = any(entry.digest == verdict.digest for entry in (state.versions if state else []))
    return DecisionMade(
        model=verdict.model, decision=decision, reason=reason, version=version,
        previous=verdict.champion_version, digest=verdict.digest, job_id=verdict.job_id,
        drift_id=verdict.drift_id, epoch=state.epoch if state else 0,
        deletes=[] if has_it else [adapter_path(verdict.digest)],
    )


def adapter_path(digest: str) -> str:
    """Where an adapter's files are, whatever an event says: what is deleted there is nothing else."""
    return f"adapters/{digest}"


def on_rollback(state: ModelStateChanged | None, command: RollbackRequested) -> Outcome:
    """Serve an earlier version (or the base, version 0) again."""
    if state is None:
        return _refuse(command, 0, "the model has no version yet")
    if command.epoch not in (-1, state.epoch):
        return _refuse(command, state.epoch, f"asked at epoch {command.epoch}, the state is at {state.epoch}")
    target = state.previous if command.to_version < 0 else command.to_version
    if target == state.champion:
        return _refuse(command, state.epoch, f"version {target} serves already")
    entry = find(state, target)
    if target and entry is None:
        return _refuse(command, state.epoch, f"there is no version {target}")
    if entry is not None and entry.erasures and command.to_version < 0:
        named = f"{state.model}@{target}"
        reason = f"version {target} learned from what was erased since; name it ({named}) to serve it all the same"
        return _refuse(command, state.epoch, reason)
    return _serve_again(state, target, command.reason or "asked for", "rolled-back", command.actor)


def _refuse(command: RollbackRequested, epoch: int, reason: str) -> Outcome:
    return Outcome(
        None,
        DecisionMade(
            model=command.model, decision="command-refused", reason=reason, epoch=epoch, actor=command.actor
        ),
    )


def _serve_again(
    state: ModelStateChanged, target: int, reason: str, decision: str, actor: str = ""
) -> Outcome:  # fmt: skip
    status = {state.champion: "rolled-back", target: "serving"}
    versions = [
        msgspec.structs.replace(entry, status=status.get(entry.version, entry.status)) for entry in state.versions
    ]
    after = msgspec.structs.replace(
        state, epoch=state.epoch + 1, champion=target, previous=state.champion, shares={str(target): 1.0},
        versions=versions, change=decision, reason=reason,
    )
    line = DecisionMade(
        model=state.model, decision=decision, reason=reason, version=target, previous=state.champion,
        epoch=after.epoch, actor=actor,
    )
    return Outcome(after, line)


def on_hold(state: ModelStateChanged | None, command: HoldRequested, base: str) -> Outcome:
    """Hold a model, or let it go on; what is so already changes nothing. One of which nothing is known gets a state."""
    before = state or ModelStateChanged(
        model=command.model, base=base, epoch=0, champion=0, previous=0, versions=[], change="held", reason="",
    )
    held = (command.reason or "asked for") if command.hold else ""
    if held == before.held:
        return Outcome(None, None)
    change = "held" if held else "resumed"
    line = DecisionMade(
        model=command.model, decision=change, reason=command.reason, version=before.champion, epoch=before.epoch,
        actor=command.actor,
    )
    return Outcome(msgspec.structs.replace(before, held=held), line)


def on_erasure(state: ModelStateChanged, erasure: ErasureCompleted) -> Outcome:
    """Mark the versions that learned from what was erased; they go on serving until somebody decides otherwise."""
    # By digest: a candidate that the receipt names may have got its number since.
    marked = {one.digest for one in erasure.adapters if one.model == state.model}
    versions = [
        msgspec.structs.replace(entry, erasures=[*entry.erasures, erasure.erasure_id])
        if entry.digest in marked and erasure.erasure_id not in entry.erasures else entry
        for entry in state.versions
    ]  # fmt: skip
    if versions == state.versions:
        return Outcome(None, None)
    return Outcome(msgspec.structs.replace(state, versions=versions), None)


def on_review(state: ModelStateChanged | None, found: ReviewReached, judges: Collection[str] = ("gate",)) -> Outcome:
    """Undo a promotion that a look back showed to be surely worse than what served before: once, and only while nothing
    else has happened since. Not to a version that learned from what was erased: to the newest that did not."""
    if state is None or not found.worse or found.judge not in judges or state.held:
        return Outcome(None, None)
    if (state.champion, state.epoch, state.change) != (found.version, found.epoch, "promoted"):
        return Outcome(None, None)
    target = _unmarked(state, found.previous)
    if target is None:
        all_marked = f"all versions before {found.version} learned from what was erased since"
        reason = f"{all_marked}, but it is worse: {found.reason}"
        line = DecisionMade(model=state.model, decision="command-refused", reason=reason, epoch=state.epoch)
        return Outcome(None, line)
    return _serve_again(state, target, found.reason, "rolled-back", found.judge)


def _unmarked(state: ModelStateChanged, previous: int) -> int | None:
    """`previous`, or the newest before it that was not undone, that learned from nothing that was erased since; None
    without."""
    if previous == 0:  # the base learned from nobody
        return 0
    before = [
        one.version for one in state.versions
        if not one.erasures and (one.version == previous or (one.version < previous and one.status != "rolled-back"))
    ]  # fmt: skip
    return max(before, default=None)
