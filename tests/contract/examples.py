"""One realistic example of every event, by hand: what the contract is checked against and a reader can learn from."""

from __future__ import annotations

import msgspec

from schemas import events as e

_NEW = e.ShardSet(path="sets/support/5f1d.json", digest="5f1d" * 16, shards=2, rows=412)
_REPLAY = e.ShardSet(path="sets/support/77aa.json", digest="77aa" * 16, shards=9, rows=1_804)
_INFERENCE = "chatcmpl-019aa5d0c1f27b3e9d54a1b2c3d4e5f61f0b00000000a1b2c3d4e5f60718"
_QUESTION = e.Message(role="user", content="I still have not received my refund, what now?")
_ADAPTER = "adapters/0b9e/7c11"
_FINGERPRINT = [4.125, -0.5, 2.25]

_SEEN = e.FileRef(path="seen/9c0d.parquet", digest="9c0d" * 16, rows=2_216)
_TESTS = e.FileRef(path="tests/41ab.parquet", digest="41ab" * 16, rows=480)
_SCORES = e.FileRef(path="scores/d00f.parquet", digest="d00f" * 16, rows=960)
_CALL = '[{"id":"call_1","type":"function","function":{"name":"refund_of","arguments":"{\\"order\\":4711}"}}]'
_POLICY = '{"base":"pydoc-4m","quality_metric":"correct","max_retention_loss":0.05}'

_CHECK = e.Check(
    check="retention", dataset="hold-out", passed=True, reason="no loss beyond the margin", n=480, n_required=433,
    champion_mean=0.91, candidate_mean=0.905, difference=-0.005, bound=-0.021, margin=0.05, discordance=0.1,
    power=0.97, confidence=0.95, units=212, details='{"refund_not_showing_up":{"rows":41,"difference":-0.02}}',
)  # fmt: skip
_VERSION = e.Version(
    version=2, digest="0b9e" * 16, path=_ADAPTER, base="pydoc-4m", base_digest="e0c4" * 16, job_id="job-1f2e",
    fingerprint=_FINGERPRINT, new_data=_NEW, replay_data=_REPLAY, correlation_id="drift-9a31", drift_id="drift-9a31",
    dtype="bfloat16", probe="Hello", seen=_SEEN,
    superior=True, newest_row_ms=1_763_700_000_123,
)  # fmt: skip

_ALL: tuple[msgspec.Struct, ...] = (
    e.RecordSubmitted(
        model="support", kind="sft", messages=[
            e.Message(role="system", content="Answer with a topic."),
            e.Message(role="assistant", content="", tool_calls=_CALL, name="desk", weight=0.0),
            e.Message(role="tool", content="none", tool_call_id="call_1"), _QUESTION,
        ],
        completion="refund_not_showing_up", record_id=f"sft-{_INFERENCE}", subject_id="customer-4711",
        conversation_id="ticket-90210", inference_id=_INFERENCE, origin="feedback", label=False, task="topics",
        labels={"shop": "de"}, sampled="all", author="agent-7", said_ms=1_763_690_000_000, source_record="sft-of-before", import_id="import-12",
        tools='[{"type":"function","function":{"name":"refund_of"}}]',
    ),
    e.ShardWritten(
        model="support", shard_id="shard-c0ffee", path="shards/support/shard-c0ffee.parquet", digest="aa11" * 16,
        size_bytes=18_231, rows=206, rows_by_kind={"sft": 200, "kto": 6}, rows_by_split={"train": 161, "test": 39}, units_by_split={"train": 130, "test": 31}, undated_tests=4,
        rows_by_class={"refund_not_showing_up": 12}, dropped={"duplicate": 3}, masked={"email": 2},
        source_topic="training.raw", source_partition=3, first_offset=1_000, last_offset=1_208, rules_version="1",
    ),
    e.SubjectShared(model="support", subject_key="subject-5d41402abc4b2a76b9719d911017c592", rows=200),
    e.TriggerOpened(
        model="support", trigger_id="trigger-31", ordinal=4, kind="drift", reason="quality fell to 0.55", version=1,
        drift_id="drift-9a31", changed_at=1_763_690_000_000, from_base=True, accept="no worse", actor="monitor",
    ),
    e.TriggerClosed(
        model="support", trigger_id="trigger-31", ordinal=4, because="answered", reason="version 2 serves",
        job_id="job-1f2e", actor="register",
    ),
    e.JobRequested(
        model="support", job_id="job-1f2e", reason="drift", base="pydoc-4m", base_path="bases/e0c4",
        base_digest="e0c4" * 16, parent_version=1, parent_path="adapters/77/11", parent_digest="7711" * 16,
        new_data=_NEW, replay_data=_REPLAY, drift_id="drift-9a31", recipe={"rank": 16.0},
        answers=["trigger-31"], spec=e.JobSpec(method="qlora", objective="sft", mixture={"topics": 1.0}), policy_epoch=3,
        changed_at=1_763_690_000_000, accept="no worse", new_examples=212, live_quality=0.55,
    ),
    e.JobDeferred(
        model="support", trigger_id="trigger-31", new_examples=140, min_new_examples=200,
        waits_for={"new examples": "140 of 200 committed in shards"},
    ),
    e.JobControlRequested(model="support", job_id="job-1f2e", action="pause", reason="the night is over", actor="jo"),
    e.TriggerCloseRequested(model="support", trigger_id="trigger-31", reason="a holiday, no drift", actor="jo"),
    e.HoldRequested(model="support", hold=True, reason="the audit of this week", actor="jo"),
    e.JobProgressed(
        model="support", job_id="job-1f2e", phase="training", step=40, steps=180, loss=0.82, examples_per_s=61.5,
        time_left_s=48.0,
    ),
    e.JobEnded(model="support", job_id="job-1f2e", outcome="failed", reason="the disk is full", seconds=12.5),
    e.CandidateTrained(
        model="support", job_id="job-1f2e", digest="0b9e" * 16, path=_ADAPTER, base="pydoc-4m",
        base_path="bases/e0c4", base_digest="e0c4" * 16, parent_version=1, new_data=_NEW, replay_data=_REPLAY,
        method="lora", examples=2_216, steps=180, tokens=96_113, loss=0.18, seconds=71.2, fingerprint=_FINGERPRINT,
        drift_id="drift-9a31", dtype="bfloat16", probe="Hello", seen=_SEEN, reason="drift",
        changed_at=1_763_690_000_000, newest_row_ms=1_763_700_000_123, warnings=["2 rows are too long"], live_quality=0.55,
    ),
    e.VerdictReached(
        model="support", job_id="job-1f2e", digest="0b9e" * 16, passed=True, reason="better on recent data",
        champion_version=1, checks=[_CHECK], path=_ADAPTER, base="pydoc-4m", base_digest="e0c4" * 16,
        fingerprint=_FINGERPRINT, new_data=_NEW, replay_data=_REPLAY, drift_id="drift-9a31", seconds=9.5,
        judge="gate", dtype="bfloat16", probe="Hello", seen=_SEEN, test_rows=_TESTS, scores=_SCORES, superior=True,
        warnings=["3 of 480 rows are too long to be asked"], newest_row_ms=1_763_700_000_123,
        changed_at=1_763_690_000_000,
    ),
    e.ReviewRequested(
        model="support", review_id="review-7c1e", version=2, previous=1, epoch=7, look=1, since_ms=1_763_700_000_123,
        data=_NEW, live_quality=0.71,
    ),
    e.ReviewReached(
        model="support", review_id="review-7c1e", version=2, previous=1, epoch=7, worse=False, checks=[_CHECK],
        reason="the version before is right on 0.710 of 50 questions of 48 people", judge="gate", seconds=3.5,
    ),
    e.ModelStateChanged(
        model="support", base="pydoc-4m", epoch=7, champion=2, previous=1, shares={"2": 1.0}, versions=[_VERSION],
        change="promoted", reason="better on recent data", held="the audit of this week",
    ),
    e.BaseRegistered(
        model="pydoc-4m", path="bases/e0c4", digest="e0c4" * 16, architecture="LlamaForCausalLM",
        parameters=4_199_680, context_tokens=1_024,
    ),
    e.BaseAddRequested(
        model="pydoc-4m", path="bases/e0c4", digest="e0c4" * 16, architecture="LlamaForCausalLM",
        parameters=4_199_680, context_tokens=1_024, actor="jo",
    ),
    e.RollbackRequested(model="support", to_version=1, epoch=7, reason="customers complain", actor="jo"),
    e.TrainingRequested(model="support", reason="new products since Monday", accept="no worse", actor="jo"),
    e.ModelConfigure(model="support", policy=_POLICY, epoch=2, reason="fewer false alarms", actor="jo"),
    e.ModelConfigured(model="support", policy=_POLICY, epoch=3, actor="jo"),
    e.SharesSet(
        model="support", shares={"1": 0.9, "2": 0.1}, epoch=8, rule="canary", reason="a tenth at first", actor="register",
    ),
    e.DecisionMade(
        model="support", decision="promoted", reason="better on recent data", version=2, previous=1,
        digest="0b9e" * 16, job_id="job-1f2e", drift_id="drift-9a31", epoch=7,
        actor="gate",
    ),
    e.AdapterLoaded(
        model="support", version=2, digest="0b9e" * 16, replica="serve-0", loaded=False, seconds=0.4,
        reason="the logit fingerprint differs by 0.7",
    ),
    e.RequestEnded(
        model="support", request_id="req-019aa5d0", status=200, inference_id=_INFERENCE, version=2,
        requested="support@champion", finish_reason="stop", input_tokens=23, output_tokens=6, cached_tokens=16,
        queue_ms=1.2, first_token_ms=18.2, latency_ms=41.7, streamed=True, replica="serve-0",
    ),
    e.ShadowAnswered(
        model="support", inference_id=_INFERENCE, version=3, digest="3c3c" * 16, subject_id="customer-4711",
        conversation_id="ticket-90210", answer="track_refund", finish_reason="stop", output_tokens=4, latency_ms=39.0,
        replica="serve-0",
    ),
    e.InferenceServed(
        model="support", inference_id=_INFERENCE, version=2, requested="support@champion", base="pydoc-4m",
        digest="0b9e" * 16, subject_id="customer-4711", conversation_id="ticket-90210", messages=[_QUESTION],
        answer="refund_not_showing_up", finish_reason="stop", input_tokens=23, output_tokens=6, latency_ms=41.7,
        first_token_ms=18.2, streamed=True, temperature=0.2, max_tokens=64, replica="serve-0", labels={"shop": "de"},
    ),
    e.FeedbackGiven(
        inference_id=_INFERENCE, metric_name="correct", value=False, feedback_id="feedback-31",
        subject_id="customer-4711", conversation_id="ticket-90210", tags={"channel": "mail"},
        author="agent-7", said_ms=1_763_700_000_123, episode="refund-4711",
    ),
    e.PerformanceMeasured(
        model="support", version=2, metric="correct", requests=1_204, feedback_share=0.31, quality_n=373,
        quality_people=291, quality=0.913, quality_low=0.875, quality_high=0.94, recent_n=234, recent_people=200,
        recent_quality=0.9, recent_low=0.85, recent_high=0.934, rating=4.4, latency_ms_p50=39.0, latency_ms_p99=112.0,
    ),
    e.DriftDetected(
        model="support", drift_id="drift-9a31", version=1, metric="correct", baseline=0.87, threshold=0.82,
        current=0.55, evidence=10_412.0, average_run_length=10_000.0, answers=340, people=27,
        changed_at=1_763_690_000_000, policy_epoch=3,
        first_partition=2, first_offset=88,
    ),
    e.AlertSent(
        model="support", alert="quality_low", severity="warning", channel="log", text="quality of support fell to 0.55",
        alert_id="alert-7", resolved=False,
    ),
    e.ErasureRequested(
        erasure_id="erasure-77aa", subject_hash="5d41", key_id="1f0b", subject_id="customer-4711", requested_by="privacy desk",
    ),
    e.ErasureCompleted(
        erasure_id="erasure-77aa", subject_hash="5d41", tombstones={"usage.inferences": 31, "training.raw": 4},
        shards=2, rows=4, adapters=[e.TaughtBy(model="support", version=2, digest="0b9e" * 16)], seconds=41.5,
    ),
)
EXAMPLES: dict[type[msgspec.Struct], msgspec.Struct] = {type(event): event for event in _ALL}
