"""The topics: nothing orphaned, personal words erasable, groups known; and nothing generated from them stale."""

from __future__ import annotations

import pytest

from schemas import generate
from schemas.events import EVENTS
from schemas.evolution import check_all, json_schema, published
from schemas.personal import NAMELESS, PERSON_FIELDS
from schemas.topics import BY_NAME, CONSUMER_GROUPS, TOPICS, all_topics, dead_letters
from streams import join_feedback, register
from streams.conduct import step as conduct
from streams.monitor import land

every_topic = pytest.mark.parametrize("topic", all_topics(), ids=lambda topic: topic.name)
# Readers and writers that are no consumer group: followers without one, the command line, foreign clients.
OTHERS = {"serve", "tuneloop", "tuneloop dlq", "tuneloop data add", "applications"}


@every_topic
def test_no_topic_is_orphaned(topic) -> None:
    assert topic.producers and topic.consumers and topic.key and topic.partition_by
    assert topic.events or topic.name.startswith("dead.")
    assert set(topic.consumers) <= {*CONSUMER_GROUPS, *OTHERS}
    assert set(topic.producers) <= {*CONSUMER_GROUPS, *OTHERS}


def test_every_group_reads_something_and_has_its_dead_letters() -> None:
    for group in CONSUMER_GROUPS:
        assert any(group in topic.consumers for topic in TOPICS), group
        assert dead_letters(group) in all_topics()
    with pytest.raises(ValueError, match="no consumer group 'stranger'"):
        dead_letters("stranger")


def test_names_are_unique() -> None:
    assert len({topic.name for topic in all_topics()}) == len(all_topics())
    assert sorted(event.__name__ for topic in TOPICS for event in topic.events) == sorted(e.__name__ for e in EVENTS)


@every_topic
def test_topics_with_personal_words_can_forget_one_record(topic) -> None:
    text = {"messages", "prompt", "completion", "answer", "value"}
    holds_text = any(field in text for event in topic.events for field in event.__struct_fields__)
    assert topic.personal == (holds_text or topic.name.startswith(("dead.", "subjects.")))
    if topic.personal:
        assert "compact" in topic.cleanup.split(",")
        assert topic.key in (
            "record id", "inference_id", "inference_id/feedback_id/metric_name/said_ms", "origin (topic/partition/offset)",
            "erasure_id",
        )  # fmt: skip
        assert int(topic.config()["max.compaction.lag.ms"]) <= 86_400_000
    if topic.cleanup == "delete":
        assert "max.compaction.lag.ms" not in topic.config()


@every_topic
def test_retention_is_said_in_milliseconds(topic) -> None:
    days = topic.retention_days
    assert topic.config()["retention.ms"] == (str(days * 86_400_000) if days >= 0 else "-1")
    assert topic.config()["cleanup.policy"] == topic.cleanup


def test_only_topics_of_one_type_take_records_without_headers() -> None:
    assert [topic.name for topic in TOPICS if topic.headerless] == ["training.raw", "usage.feedback"]
    assert all(len(topic.events) == 1 for topic in TOPICS if topic.headerless)


def test_joined_topics_have_as_many_partitions_as_each_other() -> None:
    assert BY_NAME["usage.inferences"].partitions == BY_NAME["usage.feedback"].partitions


def test_the_declared_readers_read_what_they_declare() -> None:
    declared = {group: {t.name for t in TOPICS if group in t.consumers} for group in CONSUMER_GROUPS}
    assert set(register.TOPICS) == declared["register"]
    assert set(land.LANDED_TOPICS) == declared["monitor"] == set(BY_NAME), "the monitor lands every topic"
    assert {join_feedback.FEEDBACK, join_feedback.INFERENCES} == declared["join-feedback"]
    assert {*conduct.TOPICS, *conduct.OWN_TOPICS} == declared["conduct"]
    assert {register.GROUP, land.GROUP, join_feedback.GROUP, conduct.GROUP} <= set(CONSUMER_GROUPS)


def test_nothing_generated_is_stale() -> None:
    assert generate.stale() == []


def test_published_schemas_are_read_by_the_events_of_today() -> None:
    assert check_all() == []
    for event in EVENTS:
        versions = published(event)
        assert sorted(versions) == list(range(1, len(versions) + 1)), "versions are numbered from 1 without a gap"
        assert versions[max(versions)] == json_schema(event)


def test_a_stale_file_is_found(monkeypatch, tmp_path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{generate._BEGIN}\nan old table\n{generate._END}\nafter\n")
    monkeypatch.setattr(generate, "README", readme)
    monkeypatch.setattr(generate, "LANDING", tmp_path / "none.sql")
    assert set(generate.stale()) == {readme, tmp_path / "none.sql"}
    text = generate.outputs()[readme]
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "`training.raw`" in text


def test_every_event_on_a_personal_topic_says_whose_it_is() -> None:
    events = [event for topic in TOPICS if topic.personal for event in topic.events]
    assert {event.__name__ for event in events if "subject_id" not in event.__struct_fields__} == set(NAMELESS)
    assert set(PERSON_FIELDS) >= {
        name for event in events for name in event.__struct_fields__ if name in ("author", "subject_id", "requested_by")
    }
