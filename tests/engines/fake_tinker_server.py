"""A FAKE Tinker server: the real protocol over real sockets, without a model behind it.

Its models only count what was done to them, and every log-probability is -0.5. It can lose answers, be busy, be slow, die, come
back, and forget its models as a server does that was started again. ``tests/cluster`` runs the real one.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from tinker.proto import tinker_public_pb2 as proto

LOGPROB = -0.5


@dataclass
class FakeModel:
    """What has been done to one model."""

    rank: int
    gradients: int = 0
    steps: int = 0
    loaded: tuple[str, bool] | None = None
    """The state it was loaded from, and whether with its optimizer."""
    last_pass: Any = None


class Lost(Exception):
    """The connection breaks without an answer."""


class Refused(Exception):
    """An answer with an error's status."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass
class FakeTinkerServer:
    """Runs in threads of this process."""

    served: str = "/models/model"
    longest_rank: int = 32
    models: dict[str, FakeModel] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    """Steps of the model at each saved state."""
    prompts: list[list[int]] = field(default_factory=list)
    """Of the turns that it sampled."""
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often a path is yet to ``lose`` its answer, to be ``busy``, or to ``drop`` the connection before it does anything."""
    ends: list[int] = field(default_factory=list)
    """Tokens at which the next turns end at once, as at an end token of the model's own."""
    refuses_turns: bool = False
    create_fault: str = ""
    """What it says when it cannot make a model."""
    seconds_a_turn: float = 0.0
    seconds_a_refresh: float = 0.0
    most_turns_at_once: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._numbered: dict[tuple[str, int], str] = {}
        self._results: dict[str, Any] = {}
        self._ready: dict[str, float] = {}
        self._count = 0
        self._http: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        """Its address, the same after it was stopped and started."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Answer requests."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake._handle(self)

            do_POST = do_DELETE = do_GET

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A broken connection is the point."""

        self._http = Quiet(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Die: connections are refused from now on, and those that are open break at their next request."""
        assert self._http is not None
        http, self._http = self._http, None
        http.shutdown()
        http.server_close()

    def forget_models(self) -> None:
        """As after a new start: states are there, models are not."""
        with self._lock:
            self.models.clear()

    # -- requests

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path.removeprefix("/api/v1/")
        try:
            if self._http is None:
                raise Lost
            if path == "retrieve_future":
                self._wait(json.loads(body)["request_id"])
            with self._lock:
                self._misbehave(path, "drop")
                self._misbehave(path, "busy")
                answer = self._answer(request.command, path, body)
                self._misbehave(path, "lose")
        except Lost:
            request.close_connection = True
            return
        except Refused as error:
            self._send(request, error.status, json.dumps({"detail": str(error)}).encode(), "application/json")
            return
        if isinstance(answer, bytes):
            self._send(request, 200, answer, "application/x-protobuf")
        else:
            self._send(request, 200, json.dumps(answer).encode(), "application/json")

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, content: bytes, kind: str) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _misbehave(self, path: str, how: str) -> None:
        if self.faults[path, how] > 0:
            self.faults[path, how] -= 1
            if how in ("lose", "drop"):
                raise Lost
            raise Refused(429, "too many requests")

    def _answer(self, method: str, path: str, body: bytes) -> Any:
        if method == "DELETE":
            state = "tinker://" + path.removeprefix("training_runs/").replace("/checkpoints/", "/")
            del self.states[state]
            return {}
        if path == "forward_backward":
            message = proto.ForwardBackwardRequest()
            message.ParseFromString(body)
            return self._number(message.model_id, message.seq_id, lambda: self._pass(message))
        asked = json.loads(body) if body else {}
        model_id, number = asked.get("model_id", ""), asked.get("seq_id") or 0
        match path:
            case "healthz":
                return {"status": "ok"}
            case "client/config":
                return {"pjwt_auth_enabled": False}
            case "create_session":
                return {"type": "create_session", "session_id": "session"}
            case "session_heartbeat":
                return {"type": "session_heartbeat"}
            case "get_server_capabilities":
                return {"supported_models": [{"model_name": self.served}]}
            case "create_model":
                return self._promise(lambda: self._create(asked["lora_config"]["rank"]))
            case "unload_model":
                self.models.pop(model_id, None)
                return {"request_id": "0"}
            case "optim_step":
                return self._number(model_id, number, lambda: self._step(model_id))
            case "load_weights":
                return self._promise(lambda: self._load(model_id, asked["path"], asked["optimizer"]))
            case "save_weights":
                return self._promise(lambda: self._save(model_id, asked["path"]))
            case "save_weights_for_sampler":
                reply = self._promise(lambda: self._sampler(model_id))
                self._ready[reply["request_id"]] = time.monotonic() + self.seconds_a_refresh
                return reply
            case "asample":
                reply = self._promise(lambda: self._sample(asked))
                self._ready[reply["request_id"]] = time.monotonic() + self.seconds_a_turn
                waiting = sum(ready > time.monotonic() for ready in self._ready.values())
                self.most_turns_at_once = max(self.most_turns_at_once, waiting)
                return reply
            case "retrieve_future":
                return self._retrieve(asked["request_id"])
        raise Refused(404, "Not Found")

    def _number(self, model_id: str, number: int, work: Any) -> dict[str, str]:
        """Each numbered request of a model once, as the API has it."""
        if (model_id, number) not in self._numbered:
            self._numbered[model_id, number] = self._promise(work)["request_id"]
        return {"request_id": self._numbered[model_id, number]}

    def _promise(self, work: Any) -> dict[str, str]:
        self._count += 1
        request_id = str(self._count)
        try:
            self._results[request_id] = work()
        except Refused as error:
            self._results[request_id] = error
        return {"request_id": request_id}

    def _wait(self, request_id: str) -> None:
        time.sleep(max(0.0, self._ready.get(request_id, 0.0) - time.monotonic()))

    def _retrieve(self, request_id: str) -> Any:
        result = self._results[request_id]
        if isinstance(result, Refused):
            raise result
        return result

    # -- models

    def _model(self, model_id: str) -> FakeModel:
        if model_id not in self.models:
            raise Refused(400, f"Model {model_id} not loaded")
        return self.models[model_id]

    def _create(self, rank: int) -> dict[str, Any]:
        if self.create_fault:
            raise Refused(400, self.create_fault)
        if not 0 < rank <= self.longest_rank:
            raise Refused(400, f"LoRA rank {rank} must be between 1 and {self.longest_rank}")
        model_id = f"model_{self._count}"
        self.models[model_id] = FakeModel(rank)
        return {"model_id": model_id, "type": "create_model"}

    def _pass(self, message: Any) -> bytes:
        model = self._model(message.model_id)
        model.last_pass = message
        model.gradients += not message.forward_only
        answer = proto.ForwardBackwardOutput(loss_fn_output_type="scalar")
        record = answer.loss_fn_outputs.add(num_datums=len(message.data))
        lengths = [len(datum.model_input[0].encoded_text.tokens) // 4 for datum in message.data]
        record.fields["logprobs"].CopyFrom(
            proto.BatchedTensor(
                data=np.full(sum(lengths), LOGPROB, np.float32).tobytes(),
                offsets=np.cumsum([0, *(4 * length for length in lengths)], dtype=np.int64).tobytes(),
                dtype=proto.DTYPE_FLOAT32,
            )
        )
        return answer.SerializeToString()

    def _step(self, model_id: str) -> dict[str, Any]:
        model = self._model(model_id)
        model.steps += 1
        return {"metrics": {"skyrl.ai/grad_norm": 2.5}}

    def _save(self, model_id: str, name: str) -> dict[str, Any]:
        state = f"tinker://{model_id}/weights/{name}"
        self.states[state] = self._model(model_id).steps
        return {"path": state, "type": "save_weights"}

    def _load(self, model_id: str, state: str, optimizer: bool) -> dict[str, Any]:
        model = self._model(model_id)
        if state not in self.states:
            raise Refused(404, f"Checkpoint not found: {state}")
        model.loaded, model.steps = (state, optimizer), self.states[state]
        return {"type": "load_weights"}

    def _sampler(self, model_id: str) -> dict[str, Any]:
        self._model(model_id)
        return {"type": "save_weights_for_sampler", "path": None, "sampling_session_id": f"sampling_{model_id}"}

    def _sample(self, asked: dict[str, Any]) -> bytes:
        self._model(asked["sampling_session_id"].removeprefix("sampling_"))
        if self.refuses_turns:
            raise Refused(422, "no such prompt")
        most, stops = asked["sampling_params"]["max_tokens"], asked["sampling_params"].get("stop") or []
        tokens = [7, self.ends.pop(0)] if self.ends else [7] * (most - len(stops[:1])) + stops[:1]
        self.prompts.append([token for chunk in asked["prompt"]["chunks"] for token in chunk["tokens"]])
        answer = proto.SampleResponse()
        answer.sequences.add(
            stop_reason=proto.STOP_REASON_STOP if tokens[-1] != 7 else proto.STOP_REASON_LENGTH,
            tokens=np.array(tokens, np.int32).tobytes(),
            logprobs=np.full(len(tokens), LOGPROB, np.float32).tobytes(),
        )
        return answer.SerializeToString()
