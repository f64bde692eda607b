"""The gateway: one HTTP request's way to an answer and to the events that follow from it.

A chat request is parsed → its alias resolved to a loaded version → answered by the engine → published as
`InferenceServed`. No answer goes without its event: where none could be kept, nothing is generated (503), and of an
answer that was cut off what the client had of it is recorded. Feedback is a user's only copy: it is answered 200 after
the broker's acknowledgement and 503 otherwise. Nothing here waits on the event loop. Knows nothing of Ray;
`serving.app` puts it behind Ray Serve.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from schemas.codec import now_ms
from schemas.events import InferenceServed
from schemas.identity import InferenceIds, partition_of, subject_of_request
from schemas.policy import ModelPolicy
from schemas.topics import BY_NAME
from serving import answers
from serving.engine import EngineClosed, Generated, Request, Ticket
from serving.errors import AdapterError, ApiError, PromptError, bad_request, not_found
from serving.follow import Follower, Route, RouteError
from serving.metrics import ReplicaMetrics
from serving.recorder import Recorder
from serving.requests import ChatRequest, parse_chat, parse_feedback
from serving.routing import parse_model, resolve
from streams import kafka

log = logging.getLogger(__name__)
SOURCE = "serve"
ACK_TIMEOUT_S = 10.0
_FEEDBACK_PARTITIONS = BY_NAME["usage.feedback"].partitions


@dataclass
class Call:
    """One chat request on its way: what was asked, who answers, and when what happened (seconds)."""

    chat: ChatRequest
    route: Route
    inference_id: str
    request: Request
    began: float
    first_token: float = 0.0
    sent: list[str] = field(default_factory=list)  # of a stream, what the client was given

    @property
    def served_by(self) -> str:
        return f"{self.route.model}@{self.route.version}"


class Gateway:
    """See the module. All methods run on one asyncio loop."""

    def __init__(
        self, follower: Follower, policies: dict[str, ModelPolicy], ids: InferenceIds, recorder: Recorder,
        metrics: ReplicaMetrics, replica: str, most_pending: int = 256,
    ) -> None:  # fmt: skip
        """`most_pending`: how many requests an engine may have, queued or running, before new ones are turned away."""
        self._follower, self._policies, self._ids = follower, policies, ids
        self._recorder, self._replica, self._most_pending = recorder, replica, most_pending
        self._submitting = 0
        # Of its own: what loads adapters may keep all the usual threads waiting.
        self._tokenising = ThreadPoolExecutor(2, "tokenise")
        self.metrics = metrics

    # -- answering ------------------------------------------------------------------------------------

    async def open(self, body: bytes) -> Call:
        """Parse and route a chat request. Raises `ApiError`."""
        began = time.perf_counter()
        chat = parse_chat(body)
        if not self._recorder.has_room():
            message = "answers cannot be recorded now, so none are given: try again"
            raise ApiError(503, message, None, "not_recorded", retry_after_s=5)
        route = await self._route(chat.model)
        policy = self._policies[route.model]
        asked = chat.max_completion_tokens or chat.max_tokens or policy.max_tokens
        request = Request(
            messages=chat.turns(), adapter=route.adapter, max_new_tokens=min(asked, policy.max_tokens),
            temperature=chat.temperature or 0.0, top_p=chat.top_p or 1.0, seed=chat.seed, stop=chat.stops(),
        )
        return Call(chat, route, self._ids.issue(), request, began)

    async def _route(self, requested: str) -> Route:
        name, version = resolve(requested, set(self._policies), self._follower.states)
        try:
            if parse_model(requested)[1] == "champion":
                return self._follower.champion(name)
            loaded = self._follower.loaded(name, version)
            if loaded is not None:
                return loaded
            return await asyncio.to_thread(self._follower.route, name, version)
        except RouteError as error:
            raise ApiError(503, str(error), "model", "not_ready", retry_after_s=2) from error

    async def answer(self, call: Call) -> dict[str, Any]:
        """The whole answer, in OpenAI's form."""
        done: asyncio.Future[Generated] = asyncio.get_running_loop().create_future()
        ticket = await self._submit(call, None, done)
        try:
            generated = await done
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        except Exception as error:
            raise _engine_error(error) from error
        self._publish(call, generated, streamed=False)
        return answers.whole(call.inference_id, call.served_by, generated)

    async def stream(self, call: Call) -> AsyncIterator[bytes]:
        """The answer as server-sent events. Submits at once, so that errors come before the first byte."""
        deltas: asyncio.Queue[str | None] = asyncio.Queue()
        done: asyncio.Future[Generated] = asyncio.get_running_loop().create_future()
        ticket = await self._submit(call, deltas, done)
        return self._chunks(call, ticket, deltas, done)

    async def _chunks(
        self, call: Call, ticket: Ticket, deltas: asyncio.Queue[str | None], done: asyncio.Future[Generated]
    ) -> AsyncIterator[bytes]:
        who = (call.inference_id, call.served_by)
        try:
            yield answers.chunk(*who, {"role": "assistant", "content": ""})
            while (delta := await deltas.get()) is not None:
                call.sent.append(delta)
                yield answers.chunk(*who, {"content": delta})
            generated = await done
        except (asyncio.CancelledError, GeneratorExit):  # the client left
            ticket.cancel()
            done.cancel()
            self._publish_part(call, ticket, "cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - the headers are out: the error travels in the stream
            refused = _engine_error(error)
            self.metrics.failed("chat", refused)
            self._publish_part(call, ticket, "error")
            yield answers.event(refused.body())
            return
        self._publish(call, generated, streamed=True)
        yield answers.chunk(*who, {}, generated.finish_reason)
        if call.chat.stream_options and call.chat.stream_options.include_usage:
            yield answers.usage_chunk(*who, generated)
        yield b"data: [DONE]\n\n"

    async def _submit(
        self, call: Call, deltas: asyncio.Queue[str | None] | None, done: asyncio.Future[Generated]
    ) -> Ticket:
        """Queue the request at the engine, or turn it away. In a thread: to tokenise a long prompt takes its time."""
        engine = call.route.engine
        if engine.pending() + self._submitting >= self._most_pending:
            raise ApiError(429, "too many requests wait for an answer: try again", None, "overloaded", retry_after_s=1)
        loop = asyncio.get_running_loop()

        def on_delta(text: str) -> None:  # on the engine's thread
            call.first_token = call.first_token or time.perf_counter()
            if deltas is not None:
                loop.call_soon_threadsafe(deltas.put_nowait, text)

        def on_done(ticket: Ticket) -> None:  # on the engine's thread
            loop.call_soon_threadsafe(_settle, done, ticket)
            if deltas is not None:
                loop.call_soon_threadsafe(deltas.put_nowait, None)

        self._submitting += 1
        submitted = loop.run_in_executor(self._tokenising, partial(engine.submit, call.request, on_delta, on_done))
        try:
            return await asyncio.shield(submitted)
        except (PromptError, AdapterError, EngineClosed) as error:
            raise _engine_error(error) from error
        except asyncio.CancelledError:
            submitted.add_done_callback(_abandon)
            done.cancel()
            raise
        finally:
            self._submitting -= 1

    def _publish_part(self, call: Call, ticket: Ticket, reason: str) -> None:
        """Of an answer that did not come to its end: what the client has is recorded like any other."""
        if call.sent:
            part = Generated("".join(call.sent), (), ticket.input_tokens, ticket.output_tokens, reason)
            self._publish(call, part, streamed=True)

    def _publish(self, call: Call, generated: Generated, streamed: bool) -> None:
        now, chat = time.perf_counter(), call.chat
        conversation = chat.conversation() or call.inference_id
        event = InferenceServed(
            model=call.route.model, inference_id=call.inference_id, version=call.route.version, requested=chat.model,
            base=call.route.base, digest=call.route.digest,
            subject_id=subject_of_request(chat.safety_identifier, chat.user, chat.conversation(), call.inference_id),
            conversation_id=conversation, messages=chat.whole_turns(), answer=generated.text,
            finish_reason=generated.finish_reason, input_tokens=generated.input_tokens,
            output_tokens=generated.output_tokens, latency_ms=(now - call.began) * 1000,
            first_token_ms=((call.first_token or now) - call.began) * 1000, streamed=streamed,
            temperature=call.request.temperature, max_tokens=call.request.max_new_tokens, replica=self._replica,
            labels=chat.metadata or {},
        )
        self.metrics.answered(call.served_by, now - call.began)
        self._recorder.record(kafka.out(event, source=SOURCE, subject=call.served_by, event_id=call.inference_id))

    # -- the rest -------------------------------------------------------------------------------------

    def models(self) -> dict[str, Any]:
        """`GET /v1/models`: every alias a request may name."""
        names = []
        for model in sorted(self._policies):
            state = self._follower.states.get(model)
            names += [model, f"{model}@champion", f"{model}@0"]
            names += [f"{model}@{entry.version}" for entry in (state.versions if state else [])]
        return {"object": "list", "data": [
            {"id": name, "object": "model", "created": 0, "owned_by": "tuneloop"} for name in names
        ]}  # fmt: skip

    async def feedback(self, body: bytes) -> dict[str, Any]:
        """Publish feedback and wait for the broker. Raises `ApiError` 400, 404, 503."""
        request = parse_feedback(body, self._policies)
        if not self._ids.genuine(request.inference_id):
            raise not_found(
                f"no gateway issued the inference id {request.inference_id!r}; send the `id` of a chat completion",
                "inference_id", "unknown_inference",
            )
        event = request.event(now_ms())
        await self._acknowledged(
            kafka.out(
                event, source=SOURCE, partition=partition_of(event.inference_id, _FEEDBACK_PARTITIONS),
                event_id=f"{event.feedback_id}/{event.said_ms}", causation_id=event.inference_id,
            )
        )
        self.metrics.feedback(event.metric_name)
        return {"object": "feedback", "feedback_id": event.feedback_id, "inference_id": event.inference_id}

    async def _acknowledged(self, out: kafka.Out) -> None:
        loop = asyncio.get_running_loop()
        delivered: asyncio.Future[None] = loop.create_future()

        def on_delivery(error: Any) -> None:  # on the polling thread, or at once
            loop.call_soon_threadsafe(_acknowledge, delivered, error)

        try:
            self._recorder.send(out, on_delivery)
            await asyncio.wait_for(delivered, ACK_TIMEOUT_S)
        except (BufferError, TimeoutError, ConnectionError) as error:
            message = "the feedback was not stored; send it again"
            raise ApiError(503, message, None, "not_stored", retry_after_s=5) from error


def _abandon(submitted: asyncio.Future[Ticket]) -> None:
    """Whoever asked left while the prompt was tokenised."""
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


def _settle(done: asyncio.Future[Generated], ticket: Ticket) -> None:
    if done.done():
        return
    try:
        done.set_result(ticket.result(0))
    except Exception as error:  # noqa: BLE001 - whatever ended the request is for whoever waits for it
        done.set_exception(error)


def _acknowledge(delivered: asyncio.Future[None], error: Any) -> None:
    if delivered.done():
        return
    if error is None:
        delivered.set_result(None)
    else:
        delivered.set_exception(ConnectionError(str(error)))


def _engine_error(error: Exception) -> ApiError:
    if isinstance(error, PromptError):
        return bad_request(str(error), "messages", "context_length_exceeded" if "tokens" in str(error) else None)
    if isinstance(error, AdapterError | EngineClosed):
        return ApiError(503, str(error), "model", "not_ready", retry_after_s=1)
    log.error("generation failed", exc_info=error)
    return ApiError(500, f"the answer failed: {type(error).__name__}", None, "generation_failed")
