"""Synthetic examples: what is asked of a teacher, what is taken from it, and what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from openai import OpenAI

from deploy.synthesis import TeacherError, parse, synthetic, variants

ROW = {
    "model": "support", "kind": "sft", "split": "train", "origin": "feedback", "completion": "parcel", "subject_id": "jane",
    "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "Where is my parcel [phone]?"}], "record_id": "sft-1",
}  # fmt: skip


class FakeTeacher(ThreadingHTTPServer):
    """Says what it is told to, in OpenAI's form: a real teacher is too large for this machine."""

    def __init__(self, said: str, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.said, self.status, self.asked = said, status, []


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        message = {"role": "assistant", "content": self.server.said}
        body = {"id": "x", "object": "chat.completion", "created": 1, "model": "t", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def teach() -> Iterator[object]:
    started = []

    def start(said: str, status: int = 200) -> tuple[FakeTeacher, OpenAI]:
        server = FakeTeacher(said, status)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return server, OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="k", max_retries=0)

    yield start
    for server in started:
        server.shutdown()


def test_variants_are_new_wordings_of_the_last_turn(teach) -> None:
    said = ["where's my parcel [phone]", "WHERE is my parcel [phone]?", " ", "parcel?? [phone]", "parcel?? [phone]", "one too many"]
    server, client = teach(json.dumps(said))
    assert variants(client, "t", ROW, 2) == ["where's my parcel [phone]", "parcel?? [phone]"]
    (asked,) = server.asked
    assert asked["messages"][-1] == {"role": "user", "content": "Where is my parcel [phone]?"}
    assert "2 other questions" in asked["messages"][0]["content"]


def test_a_variant_trains_as_its_source_and_belongs_to_the_same_person() -> None:
    record = synthetic(ROW, "parcel??")
    assert [turn.content for turn in record.messages] == ["be kind", "parcel??"]
    assert (record.completion, record.subject_id, record.origin) == ("parcel", "jane", "synthetic")
    assert record == synthetic(ROW, "parcel??") and record.record_id != synthetic(ROW, "parcel!").record_id


@pytest.mark.parametrize("reply", ['["a", "b"]', '```json\n["a", "b"]\n```', ' ["a","b"] '])
def test_a_reply_may_stand_in_a_fence(reply: str) -> None:
    assert parse(reply) == ["a", "b"]


@pytest.mark.parametrize("reply", ["Sure! Here you are", '{"a": 1}', "[1, 2]", ""])
def test_any_other_reply_is_refused_with_what_was_said(reply: str) -> None:
    with pytest.raises(TeacherError, match="asked for a JSON array of strings"):
        parse(reply)


def test_a_teacher_that_fails_says_so(teach) -> None:
    _, client = teach("[]", 500)
    with pytest.raises(TeacherError, match="did not answer"):
        variants(client, "t", ROW, 2)
