"""The gate's child: answers the hold-outs with the serving engine and compares candidate and champion.

Reads the artifact store; has no Kafka client. What was judged is what will answer: same engine, same prompt
rendering, same adapter files, fingerprint checked. An answer is right when it equals the expected one exactly
(surrounding white space aside).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from schemas.events import CandidateTrained, ModelStateChanged, Version
from schemas.policy import ModelPolicy
from serving.engine import AdapterError, Engine, EngineError, PromptError, Request, Ticket, same_fingerprint
from streams.artifacts import ArtifactError, ArtifactStore, get_shard_set, open_store
from streams.losses import is_void, losses
from streams.losses import reason as why_void
from streams.registry import find
from trainers.dataset import TRAINED_KINDS, Row, holdout, read_rows
from trainers.gate.statistics import Comparison, non_inferiority, superiority

Report = Callable[[dict[str, Any]], None]
BATCH = 32
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
        checks = compare(candidate, champion, policy, store, report)
    except (RefusedError, ArtifactError, AdapterError, EngineError) as error:
        return {"passed": False, "reason": str(error), "checks": [], "champion_version": _number(champion)}
    if void := _void(candidate, champion, store):  # people are forgotten while hold-outs are answered, too
        return void
    erasures = {*lost_rows(candidate, store), *(parent.erasures if parent else [])}
    failed = [check for check in checks if not check["passed"]]
    reason = "; ".join(
        f"{check['check']} on the {check['dataset']} hold-out {check['reason']}" for check in (failed or checks)
    )
    return {
        "passed": not failed, "reason": reason, "checks": checks, "champion_version": _number(champion),
        "erasures": sorted(erasures),
    }  # fmt: skip


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
    candidate: CandidateTrained, champion: Version | None, policy: ModelPolicy, store: ArtifactStore, report: Report
) -> list[dict[str, Any]]:
    """Superiority on recent data; with a champion, also retention on the frozen hold-out."""
    recent = holdout(read_rows(store, get_shard_set(store, candidate.new_data)))
    frozen = holdout(read_rows(store, get_shard_set(store, candidate.replay_data)))
    if champion is not None and champion.base_digest != candidate.base_digest:
        raise RefusedError(f"the candidate is for another base than version {champion.version}: {candidate.base}")
    base_dir = store.get_folder(candidate.base_path, candidate.base_digest)
    engine = Engine(base_dir, slots=BATCH, max_length=policy.max_prompt_tokens + policy.max_tokens, threads=2)
    try:
        names = _load(engine, candidate, champion, store)
        both = [*recent, *frozen]
        scores = []
        for who in names:
            scores.append(_right(engine, who, both, policy.max_tokens))
            report({"phase": "evaluating", "step": len(scores), "steps": len(names)})
    finally:
        engine.close()
    ours, theirs = scores[1], scores[0]
    cut = len(recent)
    checks = [
        _check(
            superiority(
                theirs[:cut],
                ours[:cut],
                units=None,
                confidence=policy.confidence,
                minimum_n=policy.min_holdout_examples,
                seed=0,
            ),
            "recent",
        )
    ]
    if champion is not None:
        retention = non_inferiority(
            theirs[cut:], ours[cut:], units=None, margin=policy.max_retention_loss, confidence=policy.confidence
        )
        checks.append(_check(retention, "frozen"))
    return checks


def _load(
    engine: Engine, candidate: CandidateTrained, champion: Version | None, store: ArtifactStore
) -> tuple[str | None, str]:
    """Names of (champion or None for the base, candidate) in the engine. Raises `RefusedError`."""
    engine.load("candidate", store.get_folder(candidate.path, candidate.digest))
    if not same_fingerprint(engine.fingerprint("candidate"), candidate.fingerprint):
        raise RefusedError("the stored adapter does not reproduce the logits it was published with")
    if champion is None:
        return None, "candidate"
    engine.load("champion", store.get_folder(champion.path, champion.digest))
    return "champion", "candidate"


def _right(engine: Engine, adapter: str | None, rows: Sequence[Row], max_tokens: int) -> np.ndarray:
    """Which answers equal the expected one: a boolean array, one per row."""
    asked = [_ask(engine, Request(row.messages, adapter=adapter, max_new_tokens=max_tokens)) for row in rows]
    answers = [ticket.result().text.strip() if ticket else None for ticket in asked]
    pairs = zip(answers, rows, strict=True)
    return np.array([answer == row.completion.strip() for answer, row in pairs], dtype=bool)


def _ask(engine: Engine, request: Request) -> Ticket | None:
    """None for a prompt that the engine refuses: it is wrong for all alike, and one row decides no verdict."""
    try:
        return engine.submit(request)
    except PromptError as error:
        log.warning("a row of the hold-out is not answered: %s", error)
        return None


def _check(comparison: Comparison, dataset: str) -> dict[str, Any]:
    return msgspec.to_builtins(comparison.to_check(dataset))
