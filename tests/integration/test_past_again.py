"""A group that lost its place reads all of the past again: nothing of it is trained or judged once more."""

from __future__ import annotations

from typing import Any

import pytest

from schemas import events as e
from schemas.codec import Envelope
from schemas.policy import ModelPolicy
from streams import kafka
from tests.broker import fresh, landed, publish
from tests.examples import example
from trainers.gate.validate import GateJob
from trainers.worker import WorkJob

ENVELOPE = Envelope("id", "JobRequested", "conduct", 1)


class Past:
    """Topics of a model of which some has happened."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap, self.model = bootstrap, fresh("support")

    def say(self, *events: Any) -> None:
        publish(self.bootstrap, [kafka.out(event, source="test") for event in events])

    def job(self, **fields: Any) -> e.JobRequested:
        job: e.JobRequested = example(e.JobRequested, self.model, **fields)
        self.say(job)
        return job

    def serve(self, version: int, digest: str) -> None:
        entry = example(e.Version, self.model, version=version, digest=digest)
        self.say(example(e.ModelStateChanged, self.model, champion=version, versions=[entry], epoch=version))

    def work(self, job: e.JobRequested) -> Any:
        return WorkJob(self.bootstrap, {self.model: ModelPolicy()}).accept(ENVELOPE, job)

    def cancelled(self, job: e.JobRequested) -> str:
        (out,) = self.work(job)
        ended = kafka.decode(landed(out))[1]
        assert (ended.job_id, ended.outcome) == (job.job_id, "cancelled")
        return str(ended.reason)


@pytest.fixture
def past(kafka_bootstrap: str) -> Past:
    return Past(kafka_bootstrap)


def test_the_last_job_is_done(past: Past) -> None:
    past.job()
    request = past.work(past.job())
    assert request["job"]["model"] == past.model


def test_a_job_after_which_another_was_asked_for_is_not(past: Past) -> None:
    first = past.job()
    second = past.job()
    past_of_another = example(e.JobRequested, fresh("other"))
    past.say(past_of_another)
    assert f"a later job was asked for: {second.job_id}" in past.cancelled(first)


def test_a_job_whose_candidate_stands_is_not(past: Past) -> None:
    job = past.job()
    past.say(example(e.CandidateTrained, past.model, job_id=job.job_id))
    assert past.work(job) is None


def test_a_job_that_goes_on_from_what_serves_no_more_is_not(past: Past) -> None:
    job = past.job(parent_version=1, parent_digest="1" * 64)
    past.serve(1, "1" * 64)
    assert past.work(job)["job"]["job_id"] == job.job_id
    past.serve(2, "2" * 64)
    assert past.cancelled(job) == "it would go on from version 1, but version 2 serves now"
    assert past.work(past.job(parent_digest=""))["job"]["parent_digest"] == "", "one from the base may"


def test_a_candidate_that_was_judged_is_not_judged_again(past: Past) -> None:
    candidate = example(e.CandidateTrained, past.model)
    gate = GateJob(past.bootstrap, {past.model: ModelPolicy()})
    assert gate.accept(ENVELOPE, candidate)["candidate"]["job_id"] == candidate.job_id
    past.say(example(e.VerdictReached, past.model, job_id=candidate.job_id, digest=candidate.digest))
    assert gate.accept(ENVELOPE, candidate) is None
