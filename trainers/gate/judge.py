"""The gate's child: asks the rows that judge of champion and candidate, by the serving engine, and compares.

Reads the artifact store; has no Kafka client. What was judged is what will answer: same engine, same prompt
rendering, same adapter files, fingerprint checked. An answer is right when it equals the expected one exactly
(surrounding white space aside). A row that the engine refuses is left out for all, counted and named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from schemas.events import CandidateTrained, Check, ModelStateChanged, Version
from schemas.policy import ModelPolicy
from serving.engine import AdapterError, Engine, EngineError, PromptError, Request, Ticket, same_fingerprint
from streams.artifacts import ArtifactError, ArtifactStore, get_shard_set, open_store
from streams.losses import is_void, losses
from streams.losses import reason as why_void
from streams.planning import FIRST, Disagreement
from streams.registry import anchor_of, find
from trainers.gate.checks import Checks, Judged
from trainers.gate.known import unknown_because
from trainers.gate.parts import Part, parted
from trainers.opened import judged_rows
from trainers.row_files import places, put_table
from trainers.rows import TRAINED_KINDS, JudgingRow, Rows

Report = Callable[[dict[str, Any]], None]
BATCH = 32
SAID_EACH = 100  # rows
log = logging.getLogger(__name__)


class RefusedError(RuntimeError):
    """The candidate cannot even be compared; the message is the verdict's reason."""


def make(*artifacts: str) -> Callable[[Any, Report], dict[str, Any]]:
    """What the warm child runs for each request; `artifacts` are the arguments of `open_store`."""
    store = open_store(*artifacts)
    return lambda request, report: judge(request, report, store)


def judge(request: Any, report: Report, store: ArtifactStore) -> dict[str, Any]:
    """One candidate's verdict: {passed, reason, champion_version, checks}, if need be with void and erasures."""
    report({"phase": "evaluating"})
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
    champion = find(state, state.champion) if state else None
    anchor = anchor_of(state)
    if champion is not None and champion.base_digest != candidate.base_digest:
        raise RefusedError(f"the candidate is for another base than version {champion.version}: {candidate.base}")
    tests, rows = judged_rows(store, candidate.model, candidate.new_data, candidate.replay_data, policy)
    parts = parted(
        tests, reason=candidate.reason, accept=candidate.accept,
        changed_ms=candidate.changed_at, newest_row_ms=champion.newest_row_ms if champion else 0,
    )
    base_dir = store.get_folder(candidate.base_path, candidate.base_digest)
    engine = Engine(base_dir, slots=BATCH, max_length=policy.max_prompt_tokens + policy.max_tokens, threads=2)
    try:
        names = _load(engine, candidate, champion, anchor, store)
        parts, refused = _askable(engine, parts, policy.max_tokens)
        tests = [one for part in parts for one in part.rows]
        scores: dict[str | None, np.ndarray] = {}
        for who in dict.fromkeys(names):
            asked = len(scores) * len(tests)

            def say(done: int, asked: int = asked) -> None:
                report({"phase": "evaluating", "step": asked + done, "steps": len(set(names)) * len(tests)})

            scores[who] = _right(engine, who, tests, policy.max_tokens, say)
    finally:
        engine.close()
    theirs, ours, then = (scores[who] for who in names)
    judged = Judged(
        tests, theirs, ours, then, f"version {anchor.version}" if anchor else candidate.base, _live(champion), attempt,
        unknown_because((*rows.said, *rows.confirmed)), last,
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


def _live(champion: Version | None) -> float | None:
    return champion.quality if champion else None


def _load(
    engine: Engine, candidate: CandidateTrained, champion: Version | None, anchor: Version | None, store: ArtifactStore
) -> tuple[str | None, str, str | None]:
    """Names of (champion or None for the base, candidate, anchor) in the engine. Raises `RefusedError`."""
    engine.load("candidate", store.get_folder(candidate.path, candidate.digest))
    if not same_fingerprint(engine.fingerprint("candidate"), candidate.fingerprint):
        raise RefusedError("the stored adapter does not reproduce the logits it was published with")
    if champion is None:
        return None, "candidate", None
    engine.load("champion", store.get_folder(champion.path, champion.digest))
    if anchor is None or anchor.digest == champion.digest or anchor.base_digest != candidate.base_digest:
        return "champion", "candidate", "champion"
    engine.load("anchor", store.get_folder(anchor.path, anchor.digest))
    return "champion", "candidate", "anchor"


def _askable(engine: Engine, parts: Sequence[Part], max_tokens: int) -> tuple[list[Part], list[str]]:
    """The parts without rows that the engine refuses, and how many those were, in words but not in theirs."""
    left, refused = [], 0
    for part in parts:
        asked = []
        for one in part.rows:
            try:
                engine.check(Request(one.row.messages, max_new_tokens=max_tokens))
                asked.append(one)
            except PromptError as error:
                refused += 1
                log.warning("a row of the hold-out is left out: %s", error)
        left.append(replace(part, rows=tuple(asked)))
    total = sum(len(part.rows) for part in parts)
    why = "too long, or not in the form that the model's chat template takes; the gate's log says which it was"
    return left, [f"{refused} of {total} test rows cannot be asked ({why})"] if refused else []


def _right(
    engine: Engine, adapter: str | None, rows: Sequence[JudgingRow], max_tokens: int, say: Callable[[int], None]
) -> np.ndarray:
    """Which answers equal the expected one: 1 or 0, one per row. `say` is told now and then how many are answered."""
    asked = [_ask(engine, Request(one.row.messages, adapter=adapter, max_new_tokens=max_tokens)) for one in rows]
    right = np.zeros(len(rows))
    for number, (ticket, one) in enumerate(zip(asked, rows, strict=True)):
        right[number] = ticket is not None and ticket.result().text.strip() == one.row.completion.strip()
        if number % SAID_EACH == 0 or number == len(rows) - 1:
            say(number + 1)
    return right


def _ask(engine: Engine, request: Request) -> Ticket | None:
    """None for a prompt that the engine refuses: it is wrong for all alike, and one row decides no verdict."""
    try:
        return engine.submit(request)
    except PromptError as error:
        log.warning("a row of the hold-out is not answered: %s", error)
        return None
