"""The inference service on Ray Serve: the gateway as an HTTP ingress, one engine per replica.

One Serve request per generation, no events through Serve. `/healthz` says that the process lives, `/readyz`
that the registry was read to its end and every configured model has something that answers.
"""


# No postponed annotations here: Ray Serve rebuilds this module by value, and FastAPI must still find the types.
import logging
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve

from schemas.events import AdapterLoaded
from schemas.identity import InferenceIds
from schemas.policy import ModelPolicy
from serving import limits, proxy
from serving.errors import ApiError
from streams import kafka
from streams.artifacts import open_store

APP_NAME = "tuneloop"
REQUEST_TIMEOUT_S = 120
api = FastAPI(title="Tuneloop", docs_url=None, redoc_url=None, openapi_url=None)


@api.exception_handler(ApiError)
async def _api_error(_: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers())


@api.exception_handler(404)
async def _no_path(request: Request, _: Exception) -> JSONResponse:
    error = ApiError(404, f"no such path: {request.url.path}", None, "not_found")
    return JSONResponse(error.body(), 404)


def _bind_to_loopback() -> None:
    """Keep the port that each replica opens for calls between deployments off the network; nobody calls it here.

    Ray 2.60 binds it to every interface after this constructor, without a setting, and unpickles what comes in.
    """
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica needs to know, as plain values; `environment` says where the files with credentials lie."""

    bootstrap: str
    artifacts: tuple[str, ...]  # the arguments of `open_store`
    identity_secret_file: str
    policies: dict[str, ModelPolicy]
    environment: dict[str, str] = {}
    slots: int = 32
    threads: int | None = None


@serve.deployment(name="gateway", health_check_period_s=10)
@serve.ingress(api)
class GatewayDeployment:
    """One replica: its engine, its registry follower, its Kafka producer."""

    def __init__(self, encoded_settings: bytes) -> None:
        _bind_to_loopback()
        # Here, not above: the process that deploys imports this module too and needs no torch.
        from serving.engine import Engine
        from serving.follow import Follower
        from serving.gateway import SOURCE, Gateway
        from serving.metrics import ReplicaMetrics
        from serving.recorder import PRODUCER, Recorder

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        settings = msgspec.json.decode(encoded_settings, type=ServeSettings)
        os.environ.update(settings.environment)
        replica = f"replica-{os.getpid()}"
        metrics = ReplicaMetrics(replica)
        self._recorder = Recorder(lambda: kafka.producer(settings.bootstrap, **PRODUCER), metrics)
        self._stop = threading.Event()
        longest = max(policy.max_prompt_tokens + policy.max_tokens for policy in settings.policies.values())

        def make_engine(base_dir: Path) -> Engine:
            return Engine(base_dir, slots=settings.slots, max_length=longest, threads=settings.threads)

        def say(event: AdapterLoaded) -> None:
            self._recorder.record(kafka.out(event, source=SOURCE, subject=f"{event.model}@{event.version}"))

        store = open_store(*settings.artifacts)
        self._follower = Follower(settings.policies, store, replica, say, make_engine)
        ids = InferenceIds(Path(settings.identity_secret_file).read_text().strip().encode())
        self._gateway = Gateway(
            self._follower, settings.policies, ids, self._recorder, metrics, replica,
            limits.most_pending(settings.slots),
        )  # fmt: skip
        for target in (self._follow, self._poll):
            threading.Thread(target=target, args=(settings.bootstrap,), daemon=True, name=target.__name__).start()

    def _follow(self, bootstrap: str) -> None:
        while not self._stop.is_set():
            try:
                self._follower.follow(bootstrap, self._stop)
            except Exception:
                logging.getLogger(__name__).exception("reading the registry failed; trying again")
                self._stop.wait(1)

    def _poll(self, _: str) -> None:
        while not self._stop.is_set():
            try:
                self._recorder.poll(0.1)
            except Exception:  # without this thread nothing of what is recorded would reach the broker
                logging.getLogger(__name__).exception("sending events failed; trying again")
                self._stop.wait(1)

    @api.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        with self._gateway.metrics.request("chat"):
            call = await self._gateway.open(await request.body())
            if call.chat.stream:
                return StreamingResponse(await self._gateway.stream(call), media_type="text/event-stream")
            return JSONResponse(await self._gateway.answer(call))

    @api.post("/v1/feedback")
    async def feedback(self, request: Request) -> Response:
        with self._gateway.metrics.request("feedback"):
            return JSONResponse(await self._gateway.feedback(await request.body()))

    @api.get("/v1/models")
    async def models(self) -> Response:
        return JSONResponse(self._gateway.models())

    @api.get("/metrics")
    async def metrics(self) -> Response:
        return Response(self._gateway.metrics.exposed(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @api.get("/healthz")
    async def healthz(self) -> Response:
        return JSONResponse({"status": "alive"})

    @api.get("/readyz")
    async def readyz(self) -> Response:
        ready = self._follower.ready()
        served = {model: f"{model}@{version}" for model, version in self._follower.champions().items()}
        return JSONResponse({"status": "ready" if ready else "starting", "serving": served}, 200 if ready else 503)

    def __del__(self) -> None:
        if hasattr(self, "_stop"):
            self._stop.set()
            self._recorder.close()
            self._follower.close()


def run_serve(settings: ServeSettings, host: str, port: int, replicas: int = 1) -> Any:
    """Deploy the gateway on a running Ray, on `host`:`port`; returns the application's handle.

    Raises RuntimeError where Ray's proxy runs without `serving.doors` (see `serving.proxy`).
    """
    serve.start(http_options={"host": host, "port": port, "request_timeout_s": REQUEST_TIMEOUT_S})
    app = GatewayDeployment.options(  # type: ignore[attr-defined]
        num_replicas=replicas, max_ongoing_requests=limits.most_requests(settings.slots),
    ).bind(msgspec.json.encode(settings))  # fmt: skip
    handle = serve.run(app, name=APP_NAME, route_prefix="/")
    proxy.check(host, port)
    return handle
