"""The gate's child: asks the rows that judge of champion and candidate (`trainers.gate.asking`), and compares.

Reads the artifact store; has no Kafka client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from schemas.events import CandidateTrained, Check, ModelStateChanged, ReviewRequested, Version
from schemas.policy import ModelPolicy
from serving.errors import AdapterError, EngineError
from streams.artifacts import ArtifactError, ArtifactStore, get_shard_set, open_store
from streams.losses import TRAINED_KINDS, is_void, losses
from streams.losses import reason as why_void
from streams.planning import FIRST, Disagreement
from streams.registry import anchor_of, find
from trainers.gate.asking import Player, RefusedError, answering, player
from trainers.gate.checks import Checks, Judged
from trainers.gate.known import unknown_because
from trainers.gate.parts import RECENT, Part, parted
from trainers.gate.review import asked_since, surely_worse
from trainers.opened import judged_rows
from trainers.row_files import places, put_table
from trainers.rows import Rows, read_rows

Report = Callable[[dict[str, Any]], None]


def make(*artifacts: str) -> Callable[[Any, Report], dict[str, Any]]:
    """What the warm child runs for each request; `artifacts` are the arguments of `open_store`."""
    store = open_store(*artifacts)
    return lambda request, report: judge(request, report, store)


def judge(request: Any, report: Report, store: ArtifactStore) -> dict[str, Any]:
    """One candidate's verdict: {passed, reason, champion_version, checks}, if need be with void and erasures. Or what a
    look back on a promotion found: {worse, reason, checks}."""
    report({"phase": "evaluating"})
    if "review" in request:
        asked = msgspec.convert(request["review"], ReviewRequested)
        state = msgspec.convert(request["state"], ModelStateChanged)
        return look_back(asked, state, msgspec.convert(request["policy"], ModelPolicy), store, report)
    candidate = msgspec.convert(request["candidate"], CandidateTrained)
    policy = msgspec.convert(request["policy"], ModelPolicy)
    state = msgspec.convert(request["state"], ModelStateChanged | None)
    champion = find(state, state.champion) if state else None
    parent = find(state, candidate.parent_version)
    if void := _void(candidate, champion, store):
        return void
    try:
        last = Disagreement(*request.get("last", ()))
        result = compare(candidate, state, policy, store, report, request.get("attempt", 1), last)
    except (RefusedError, ArtifactError, AdapterError, EngineError) as error:
        return {"passed": False, "reason": str(error), "checks": [], "champion_version": _number(champion)}
    if void := _void(candidate, champion, store):  # people are forgotten while hold-outs are answered, too
        return void
    erasures = {*lost_rows(candidate, store), *(parent.erasures if parent else [])}
    return {**result, "champion_version": _number(champion), "erasures": sorted(erasures)}


def look_back(
    asked: ReviewRequested, state: ModelStateChanged, policy: ModelPolicy, store: ArtifactStore,
    report: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:  # fmt: skip
    """What a look back on a promotion finds: {worse, reason, checks}. Raises what the store and the engine raise."""
    champion, previous = find(state, asked.version), find(state, asked.previous)
    if champion is None or state.champion != asked.version or (asked.previous and previous is None):
        return _nothing(f"version {state.champion} serves now")
    rows = read_rows(store, get_shard_set(store, asked.data), (), policy.corrections)
    tests = asked_since(rows, asked.since_ms)
    if why := unknown_because((*rows.said, *rows.confirmed)):
        return _nothing(why)
    before = player(previous) if previous else Player(champion.base_digest)
    with answering((player(champion), before), policy, store) as answers:
        (part,), _ = answers.askable([Part(RECENT, tuple(tests), False)])
        say = lambda done, of: report({"phase": "evaluating", "step": done, "steps": of})  # noqa: E731
        new, old = answers.right((player(champion), before), part.rows, say)
    check = surely_worse(part.rows, new, old, policy, live=asked.live_quality, look=asked.look)
    return {"worse": not check.passed, "reason": check.reason, "checks": msgspec.to_builtins([check])}


def _nothing(reason: str) -> dict[str, Any]:
    return {"worse": False, "reason": reason, "checks": []}


def lost_rows(candidate: CandidateTrained, store: ArtifactStore) -> dict[str, int]:
    """Rows that the candidate was trained on and that are gone by now, by erasure."""
    sets = (candidate.new_data, candidate.replay_data)
    return losses(store, [ref for one in sets for ref in get_shard_set(store, one)], TRAINED_KINDS)


def _void(candidate: CandidateTrained, champion: Version | None, store: ArtifactStore) -> dict[str, Any] | None:
    """The verdict on a candidate that is not to be judged, None for one that is."""
    lost = lost_rows(candidate, store)
    if not is_void(lost, candidate.void_before):
        return None
    return {
        "passed": False, "void": True, "reason": why_void(lost), "checks": [], "champion_version": _number(champion),
        "erasures": sorted(lost),
    }  # fmt: skip


def _number(champion: Version | None) -> int:
    return champion.version if champion else 0


def compare(
    candidate: CandidateTrained, state: ModelStateChanged | None, policy: ModelPolicy, store: ArtifactStore,
    report: Report, attempt: int = 1, last: Disagreement = FIRST,
) -> dict[str, Any]:  # fmt: skip
    """The verdict's own fields. Raises `RefusedError`, and what the store and the engine raise."""
    champion, anchor = find(state, state.champion) if state else None, anchor_of(state)
    tests, rows = judged_rows(store, candidate.model, candidate.new_data, candidate.replay_data, policy)
    parts = parted(
        tests, reason=candidate.reason, accept=candidate.accept,
        changed_ms=candidate.changed_at, newest_row_ms=champion.newest_row_ms if champion else 0,
    )
    ours = player(candidate, checked=True)
    theirs = player(champion) if champion else Player(candidate.base_digest)
    players = (theirs, ours, player(anchor) if anchor else theirs)
    with answering(players, policy, store) as answers:
        parts, refused = answers.askable(parts)
        tests = [one for part in parts for one in part.rows]
        say = lambda done, of: report({"phase": "evaluating", "step": done, "steps": of})  # noqa: E731
        before, now, then = answers.right(players, tests, say)
    judged = Judged(
        tests, before, now, then, f"version {anchor.version}" if anchor else candidate.base, candidate.live_quality,
        attempt, unknown_because((*rows.said, *rows.confirmed)), last,
    )
    return _verdict(candidate, judged, parts, rows, refused, policy, store)


def _verdict(
    candidate: CandidateTrained, judged: Judged, parts: Sequence[Part], rows: Rows, refused: list[str],
    policy: ModelPolicy, store: ArtifactStore,
) -> dict[str, Any]:  # fmt: skip
    checks = Checks(judged, policy, parts)
    made = checks.all()
    failed = [check for check in made if not check.passed]
    warnings = [*candidate.warnings, *refused]
    if gone := rows.ended():
        names = sorted({row.class_name for row in (*rows.said, *rows.confirmed) if row.answer in gone} - {""})
        warnings.append(f"nobody was given these any more, so they judge no longer: {', '.join(names[:20])}")
    if rows.contested:
        warnings.append(f"{len(rows.contested)} questions have two answers that both stand; neither judges")
    passed = not failed
    return {
        "passed": passed, "reason": "; ".join(map(_said, failed or made)), "checks": msgspec.to_builtins(made),
        "warnings": warnings, "live_quality": "unknown" if judged.unknown else "known",
        "superior": passed and any(part.better for part in parts),
        **msgspec.to_builtins({"test_rows": _tested(store, judged, checks), "scores": _scored(store, judged)}),
    }  # fmt: skip


def _said(check: Check) -> str:
    return f"{check.check} on {check.dataset} rows {check.reason}"


def _tested(store: ArtifactStore, judged: Judged, checks: Checks) -> Any:
    columns = places([one.row for one in judged.tests])
    return put_table(store, "tests", {
        **columns, "cluster": checks.labels.tolist(), "common": [one.common for one in judged.tests],
        "weight": checks.weights.tolist(),
    })  # fmt: skip


def _scored(store: ArtifactStore, judged: Judged) -> Any:
    return put_table(store, "scores", {
        "champion": judged.champion.tolist(), "candidate": judged.candidate.tolist(), "anchor": judged.anchor.tolist(),
    })  # fmt: skip
