"""The registry's rules: numbering, refusals, rollback by a person and by live quality."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from schemas.events import (
    ErasureCompleted,
    HoldRequested,
    ModelStateChanged,
    ReviewReached,
    RollbackRequested,
    ShardSet,
    TaughtBy,
    VerdictReached,
)
from streams.registry import (
    KEPT_VERSIONS,
    Outcome,
    on_erasure,
    on_hold,
    on_review,
    on_rollback,
    on_verdict,
)

DATA = ShardSet(path="sets/a", digest="d", shards=1, rows=9)


def verdict(digest: str, champion: int, *, passed: bool = True, job: str = "") -> VerdictReached:
    return VerdictReached(
        model="support", job_id=job or f"job-{digest}", digest=digest, passed=passed,
        reason="better" if passed else "worse", champion_version=champion, checks=[], path=f"adapters/{digest}",
        base="b", base_digest="bd", fingerprint=[1.0], new_data=DATA, drift_id="drift-1",
    )


def deleted(outcome: Outcome) -> list[str]:
    assert outcome.decision is not None
    return outcome.decision.deletes


def after(outcome: Outcome) -> ModelStateChanged:
    assert outcome.state is not None, outcome.decision
    return outcome.state


def promoted(count: int) -> ModelStateChanged:
    """The state after `count` promotions of digests d1, d2, ..."""
    state: ModelStateChanged | None = None
    for number in range(1, count + 1):
        state = after(on_verdict(state, verdict(f"d{number}", number - 1), "c"))
    assert state is not None
    return state


def statuses(state: ModelStateChanged) -> dict[int, str]:
    return {entry.version: entry.status for entry in state.versions}


def refusal(outcome: Outcome, decision: str) -> str:
    assert outcome.state is None and outcome.decision is not None and outcome.decision.decision == decision
    return outcome.decision.reason


def test_the_first_verdict_makes_version_one() -> None:
    outcome = on_verdict(None, verdict("d1", 0), "corr-1")
    state = after(outcome)
    assert (state.champion, state.previous, state.epoch, state.shares) == (1, 0, 1, {"1": 1.0})
    (entry,) = state.versions
    assert (entry.digest, entry.path, entry.correlation_id, entry.new_data) == ("d1", "adapters/d1", "corr-1", DATA)
    decision = outcome.decision
    assert decision is not None and (decision.decision, decision.version, decision.epoch) == ("promoted", 1, 1)
    assert (decision.job_id, decision.digest, decision.drift_id) == ("job-d1", "d1", "drift-1")


def test_versions_are_numbered_one_after_the_other() -> None:
    state = promoted(3)
    assert statuses(state) == {1: "retired", 2: "retired", 3: "serving"}
    assert (state.champion, state.previous, state.epoch) == (3, 2, 3)


def test_a_digest_is_numbered_once() -> None:
    state = promoted(2)
    for digest, champion in (("d2", 1), ("d1", 0)):
        assert on_verdict(state, verdict(digest, champion), "c") == Outcome(None, None), "a replay says nothing"


def test_another_job_with_the_same_adapter_gets_its_decision() -> None:
    outcome = on_verdict(promoted(2), verdict("d1", 2, job="job-again"), "c")
    assert refusal(outcome, "refused") == "the same adapter is version 1 already"
    assert outcome.decision is not None and outcome.decision.job_id == "job-again"


def test_a_failed_verdict_is_refused_with_its_reason() -> None:
    assert refusal(on_verdict(promoted(1), verdict("d2", 1, passed=False), "c"), "refused") == "worse"
    assert refusal(on_verdict(None, verdict("d1", 0, passed=False), "c"), "refused") == "worse"


def test_a_verdict_against_yesterdays_champion_is_refused() -> None:
    reason = refusal(on_verdict(promoted(2), verdict("d3", 1), "c"), "superseded")
    assert reason == "judged against version 1, but version 2 serves now"


def test_what_could_not_be_judged_has_failed_and_is_not_refused() -> None:
    outcome = on_verdict(promoted(1), msgspec.structs.replace(verdict("d2", 1, passed=False), failed=True), "c")
    assert refusal(outcome, "failed") == "worse" and deleted(outcome) == ["adapters/d2"]


def hold(state: ModelStateChanged | None, reason: str = "the audit", *, held: bool = True) -> Outcome:
    return on_hold(state, HoldRequested(model="support", hold=held, reason=reason, actor="jo"), "b")


def test_a_held_model_promotes_and_rolls_back_nothing_by_itself() -> None:
    held = after(hold(promoted(2)))
    assert (held.held, held.champion, held.epoch) == ("the audit", 2, 2)
    reason = refusal(on_verdict(held, verdict("d3", 2), "c"), "deferred")
    assert "the audit" in reason
    assert refusal(on_verdict(held, verdict("d3", 2, passed=False), "c"), "refused") == "worse"
    assert after(on_rollback(held, RollbackRequested(model="support", epoch=2))).champion == 1, "a person may"
    assert on_review(held, reviewed(held)) == Outcome(None, None)
    free = hold(held, held=False)
    assert after(free).held == "" and free.decision is not None and (free.decision.decision, free.decision.actor) == ("resumed", "jo")
    assert after(on_verdict(after(free), verdict("d3", 2), "c")).champion == 3


def test_a_hold_is_said_once_and_reaches_a_model_that_has_no_version() -> None:
    held = after(hold(None))
    assert (held.champion, held.versions, held.held, held.base) == (0, [], "the audit", "b")
    assert hold(held) == Outcome(None, None) == hold(None, held=False)
    assert after(on_verdict(after(hold(held, held=False)), verdict("d1", 0), "c")).champion == 1


def test_numbers_are_not_used_again_and_old_versions_leave() -> None:
    state = promoted(KEPT_VERSIONS + 3)
    assert len(state.versions) == KEPT_VERSIONS and state.champion == KEPT_VERSIONS + 3
    assert min(statuses(state)) == 4


def test_rollback_goes_to_the_previous_champion_and_says_so() -> None:
    outcome = on_rollback(promoted(2), RollbackRequested(model="support", epoch=2, reason="complaints"))
    state = after(outcome)
    assert (state.champion, state.previous, state.epoch, state.shares) == (1, 2, 3, {"1": 1.0})
    assert statuses(state) == {1: "serving", 2: "rolled-back"}
    assert (state.change, state.reason) == ("rolled-back", "complaints")
    assert outcome.decision is not None and (outcome.decision.version, outcome.decision.previous) == (1, 2)


def test_rollback_goes_to_a_named_version_or_to_the_base() -> None:
    assert after(on_rollback(promoted(3), RollbackRequested(model="support", to_version=1))).champion == 1
    state = after(on_rollback(promoted(1), RollbackRequested(model="support")))
    assert (state.champion, state.previous, statuses(state)) == (0, 1, {1: "rolled-back"})
    again = after(on_verdict(state, verdict("d2", 0), "c"))
    assert (again.champion, again.previous) == (2, 0), "a number is never given twice"


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_stale_epoch_is_refused(epoch: int) -> None:
    outcome = on_rollback(promoted(2), RollbackRequested(model="support", epoch=epoch))
    assert refusal(outcome, "command-refused") == f"asked at epoch {epoch}, the state is at 2"


def test_what_cannot_be_rolled_back_is_refused() -> None:
    refuse = "command-refused"
    assert "no version yet" in refusal(on_rollback(None, RollbackRequested(model="support")), refuse)
    state = promoted(2)
    assert "serves already" in refusal(on_rollback(state, RollbackRequested(model="support", to_version=2)), refuse)
    assert "no version 9" in refusal(on_rollback(state, RollbackRequested(model="support", to_version=9)), refuse)


def reviewed(state: ModelStateChanged, *, worse: bool = True, **fields: Any) -> ReviewReached:
    about = {"version": state.champion, "previous": state.previous, "epoch": state.epoch, **fields}
    return ReviewReached(model="support", review_id="review-1", worse=worse, reason="0.9 before, 0.6 now", checks=[], **about)


def test_a_promotion_that_a_review_showed_to_be_worse_is_undone_once() -> None:
    outcome = on_review(promoted(2), reviewed(promoted(2)))
    state = after(outcome)
    assert (state.champion, state.previous, statuses(state)) == (1, 2, {1: "serving", 2: "rolled-back"})
    assert outcome.decision is not None
    assert (outcome.decision.decision, outcome.decision.reason, outcome.decision.actor) == ("rolled-back", "0.9 before, 0.6 now", "gate")
    assert on_review(state, reviewed(promoted(2))) == Outcome(None, None), "a replay"
    assert on_review(state, reviewed(state)) == Outcome(None, None), "a rollback is not undone in its turn"


def test_a_first_promotion_is_undone_to_the_base() -> None:
    state = after(on_review(promoted(1), reviewed(promoted(1))))
    assert (state.champion, state.previous, statuses(state)) == (0, 1, {1: "rolled-back"})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"worse": False}, "it stands"), ({"epoch": 1}, "of another state"), ({"version": 1}, "of another version"),
        ({"judge": "somebody"}, "none of the policy's judges"),
    ],
)  # fmt: skip
def test_no_rollback_without_evidence(fields: dict[str, Any], why: str) -> None:
    assert on_review(promoted(2), reviewed(promoted(2), **fields)) == Outcome(None, None), why
    assert on_review(None, reviewed(promoted(2))) == Outcome(None, None)


def test_nothing_is_rolled_back_to_what_learned_from_the_erased() -> None:
    marked = after(on_erasure(promoted(3), receipt("d2")))
    assert after(on_review(marked, reviewed(marked))).champion == 1, "the newest that is not marked"
    both = after(on_erasure(marked, receipt("d1", "erasure-2")))
    assert "all versions before 3 learned from what was erased" in refusal(on_review(both, reviewed(both)), "command-refused")
    assert "name it (support@2)" in refusal(on_rollback(marked, RollbackRequested(model="support")), "command-refused")
    assert after(on_rollback(marked, RollbackRequested(model="support", to_version=2))).champion == 2


def test_what_was_undone_once_is_not_gone_back_to_in_place_of_a_marked_version() -> None:
    state = after(on_review(promoted(2), reviewed(promoted(2))))
    state = after(on_verdict(state, verdict("d3", 1), "c"))
    state = after(on_verdict(state, verdict("d4", 3), "c"))
    marked = after(on_erasure(state, receipt("d3")))
    assert after(on_review(marked, reviewed(marked))).champion == 1, "2 was undone, 3 learned from the erased"


def receipt(digest: str, erasure: str = "erasure-1") -> ErasureCompleted:
    return ErasureCompleted(
        erasure_id=erasure, subject_hash="h", tombstones={}, shards=1, rows=1,
        adapters=[TaughtBy(model="support", version=0, digest=digest)],
    )


def void(digest: str, champion: int, **fields: Any) -> VerdictReached:
    return msgspec.structs.replace(verdict(digest, champion, passed=False), void=True, reason="erased", **fields)


def test_a_void_candidate_is_neither_promoted_nor_refused_and_its_adapter_goes() -> None:
    outcome = on_verdict(promoted(2), void("d3", 2), "c")
    assert refusal(outcome, "void") == "erased" and deleted(outcome) == ["adapters/d3"]


def test_a_refused_adapter_goes_and_one_that_a_version_has_stays() -> None:
    assert deleted(on_verdict(promoted(2), verdict("d3", 2, passed=False), "c")) == ["adapters/d3"]
    assert deleted(on_verdict(promoted(2), verdict("d3", 1), "c")) == ["adapters/d3"], "judged against another champion"
    for same in (verdict("d1", 2, job="again"), void("d1", 2, job_id="again")):
        assert deleted(on_verdict(promoted(2), same, "c")) == []
    assert deleted(on_verdict(promoted(2), verdict("d3", 2), "c")) == []


def test_what_is_deleted_is_an_adapter_whatever_path_a_verdict_names() -> None:
    odd = msgspec.structs.replace(verdict("d3", 2, passed=False), path="shards/support")
    assert deleted(on_verdict(promoted(2), odd, "c")) == ["adapters/d3"]


def test_a_version_beyond_those_that_are_kept_loses_its_adapter() -> None:
    state = promoted(KEPT_VERSIONS)
    outcome = on_verdict(state, verdict("new", KEPT_VERSIONS), "c")
    assert len(after(outcome).versions) == KEPT_VERSIONS and deleted(outcome) == ["adapters/d1"]


def test_a_version_is_marked_by_its_verdict_and_by_receipts_before_and_after() -> None:
    judged = msgspec.structs.replace(verdict("d1", 0), erasures=["erasure-b"])
    state = after(on_verdict(None, judged, "c", {"erasure-a", "erasure-b"}))
    assert state.versions[0].erasures == ["erasure-a", "erasure-b"]
    named = TaughtBy(model="support", version=0, digest="d1")  # it had no number when the receipt was written
    receipt = ErasureCompleted(erasure_id="erasure-c", subject_hash="h", tombstones={}, shards=1, rows=1, adapters=[named])
    marked = after(on_erasure(state, receipt))
    assert marked.versions[0].erasures == ["erasure-a", "erasure-b", "erasure-c"]
    assert on_erasure(marked, receipt).state is None
