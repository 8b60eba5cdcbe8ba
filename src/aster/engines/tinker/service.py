"""The connection to a Tinker server: it repeats requests where that is safe, and raises one clear error where it is not.

The ``tinker`` client numbers a model's training requests. After a failed connection it sends a request again with the same
number, and the server executes each number once. So a lost connection never repeats a step. But the client never gives up: it
asks for the result of an accepted request until it comes. :class:`Service` watches the server at the same time, and decides
what happens to the request:

- the server does not answer: the request waits, up to ``policy.patience_seconds``; then UserError.
- it answers but does not know the policy, for instance after a restart: EngineLost. The same applies where the client could not
  find out whether a step was done.
- it answers, but repeatedly fails at the request or is too busy for it: a request that changes nothing is sent again, until
  ``policy.patience_seconds`` after its first failure; then UserError. Two cases the client handles itself by waiting: a turn
  that the server is too busy to accept (429), and errors of the server when the result of a request is fetched.
- it refuses the request: UserError in training, RuntimeError for a turn, which then fails only its trajectory.

Turns, passes, steps, checkpoints and the sampler's weights use :meth:`Service.ask`; opening a model uses
:meth:`Service.create_model`. Requests that free something on the server, and health checks, are sent separately.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx2
import tinker
from tinker.lib.retryable_exception import RetryableException

from aster.engines.base import EngineLost
from aster.errors import UserError, one_line
from aster.terminal import say

T = TypeVar("T")

KEY = "ASTER_POLICY_KEY"
NO_KEY = "tml-none"
"""The client requires a key of this form. Servers that users run themselves do not check it."""
ENTER_SECONDS = 20.0
"""Most seconds to wait for a server that has never answered this process. Its address may be wrong, which is reported soon."""
MET: set[str] = set()
"""Addresses at which a Tinker server has answered this process. When a lost policy is opened again, such a server is waited for
as long as during a request: ``policy.patience_seconds``."""
LOOK_SECONDS = 3.0
"""Seconds between two checks whether the server answers."""
SILENT_SECONDS = 15.0
"""Seconds without an answer after which this is reported. A busy server may take a few seconds."""
LONGEST_WAIT = 30.0
"""Most seconds between two attempts at a request."""
LONGEST_FAULT = 1000
"""Most characters of a server's error that are shown. Some servers put a traceback before it."""
GONE = re.compile(
    r"not loaded|(model|session|sampler|future) not found|unloaded|expired|promise (expired|broken)", re.IGNORECASE
)
"""Matches the error of a server that no longer has a policy."""
RANK = re.compile(r"lora[_ ]rank|\brank (must|of|\d+)", re.IGNORECASE)
"""Matches the error of a server that does not support the rank of adapters. Processes have ranks too (``[rank0]: ...``)."""
STATUS = re.compile(r"\(?status[ =](\d{3})\)?")


class Service:
    """The connection to one server, for one event loop. Await :meth:`connect` first, and :meth:`close` at the end."""

    def __init__(self, base_url: str, patience: float) -> None:
        """Raises UserError where the address is not valid, or the client does not accept the key."""
        self.base_url = base_url.rstrip("/")
        self._patience = patience
        key = os.environ.get(KEY, "") or NO_KEY
        if not key.startswith(("tml-", "eyJ")):
            raise UserError(f"{KEY}: the Tinker client accepts only keys that begin with tml-; set such a key, or none")
        try:
            self._http = httpx2.AsyncClient(base_url=self.base_url, headers={"X-API-Key": key}, timeout=10.0)
        except httpx2.InvalidURL as error:
            raise UserError(f"policy.base_url: {self.base_url} is not a valid address ({error}); correct it") from None
        # The client would send reports about the run to the server.
        os.environ.setdefault("TINKER_TELEMETRY", "0")
        self._client = tinker.ServiceClient(base_url=self.base_url, api_key=key)
        self._watcher: asyncio.Task[None] | None = None
        self._said_failing = False
        self._given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- the server

    async def connect(self) -> list[tinker.types.SupportedModel]:
        """Wait for the server's first answer. Return the models that it serves. Raises UserError where there is no Tinker
        server."""
        met = self.base_url in MET
        began = time.monotonic()
        said = False
        while (fault := await self._look()) is not None:
            waited = time.monotonic() - began
            if met and waited > self._patience:
                raise self._silent(fault)
            if not met and waited > min(ENTER_SECONDS, self._patience):
                raise UserError(
                    f"policy.base_url: no Tinker server answers at {self.base_url} ({fault}); start it, or correct the address"
                )
            if met and not said:
                said = True
                self._say_waiting(fault)
            await asyncio.sleep(0.5)
        if said:
            say(f"tinker: {self.base_url} answers again")
        MET.add(self.base_url)
        self._watcher = asyncio.create_task(self._watch())
        found = await self.ask("the list of models", self.in_thread(self._client.get_server_capabilities), repeat=True)
        return list(found.supported_models)

    async def _look(self) -> str | None:
        """None where a Tinker server answers, else the fault. Raises UserError where another kind of server answers."""
        try:
            answer = await self._http.get("/api/v1/healthz")
        except (httpx2.HTTPError, OSError) as error:
            return type(error).__name__
        if answer.status_code >= 500:
            return f"HTTP status {answer.status_code}"
        if answer.status_code == 404 and self._watcher is None:
            raise UserError(
                f"policy.base_url: {self.base_url} answers, but is not a Tinker server (it has no /api/v1/healthz); correct it"
            )
        return None

    async def _watch(self) -> None:
        """Report when the server stops answering, and give up when it does not answer again in time."""
        heard = time.monotonic()
        silent = False
        while True:
            fault = await self._look()
            now = time.monotonic()
            if fault is None:
                if silent:
                    say(f"tinker: {self.base_url} answers again")
                heard, silent = now, False
            elif now - heard > self._patience:
                if not self._given_up.done():
                    self._given_up.set_exception(self._silent(fault))
                return
            elif now - heard > min(SILENT_SECONDS, self._patience / 2) and not silent:
                silent = True
                self._say_waiting(fault)
            await asyncio.sleep(min(LOOK_SECONDS, self._patience / 4))

    def _say_waiting(self, fault: str) -> None:
        say(f"tinker: {self.base_url} does not answer ({fault}); waiting for it up to {self._patience:g} seconds")

    def _silent(self, fault: str) -> UserError:
        return UserError(
            f"policy.base_url: the Tinker server at {self.base_url} has not answered for {self._patience:g} seconds ({fault}); "
            "start it and give the command again: the run resumes (policy.patience_seconds sets how long ASTER waits)"
        )

    async def close(self) -> None:
        """Stop watching, close the connections, and let the session on the server end."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._given_up.done():
            self._given_up.exception()  # marks it as retrieved
        await self._http.aclose()
        # Without its client's heartbeat, a session on the server ends and frees everything that it holds. The client has no
        # method to stop the heartbeat, but its holders have one.
        for holder in (self._client._session_holder, self._client._rest_holder):
            if holder is not None:
                holder.close()

    # -- requests

    async def ask(self, what: str, call: Callable[[], Awaitable[T]], *, repeat: bool = False, turn: bool = False) -> T:
        """The result of a request; ``what`` names it in errors.

        ``repeat``: the request changes nothing on the server. It is sent again after a failed connection, or if the server
        fails or is busy, for up to ``policy.patience_seconds``. ``turn``: it is one turn of many. Raises UserError, EngineLost
        or, for a turn that the server refuses, RuntimeError."""
        pause = 1.0
        failed: float | None = None
        while True:
            try:
                result = await self._unless_given_up(call)
            except (UserError, EngineLost):
                raise
            except Exception as error:
                fault = describe(error)
                # If only the result is lost, send the request again where that is safe. The next answer shows whether the
                # server has lost the policy too.
                if is_gone(error) and not (repeat and is_result_lost(error)):
                    raise EngineLost(
                        f"the Tinker server at {self.base_url} has lost the policy, for instance by a restart ({fault})"
                    ) from error
                if is_passing(error):
                    if not repeat:
                        raise EngineLost(
                            f"the Tinker server at {self.base_url} did not report whether it did {what} ({fault})"
                        ) from error
                    failed = failed or time.monotonic()
                    self._say_or_give_up(what, fault, time.monotonic() - failed, error)
                    await asyncio.sleep(min(pause, self._patience / 4) * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, LONGEST_WAIT)
                elif turn:
                    raise RuntimeError(f"the Tinker server refused {what}: {fault}") from error
                else:
                    raise UserError(f"the Tinker server at {self.base_url} refused {what}: {fault}") from error
            else:
                if failed is not None:
                    self._said_failing = False
                return result

    def _say_or_give_up(self, what: str, fault: str, seconds: float, error: Exception) -> None:
        """Handle a request that has failed for ``seconds``: at first do nothing, then report one line for all requests, and in
        the end raise UserError."""
        if seconds > self._patience:
            raise UserError(
                f"policy.base_url: the Tinker server at {self.base_url} answers, but has failed at {what} for "
                f"{self._patience:g} seconds ({fault}); look at its log, fix it and give the command again: the run resumes "
                "(policy.patience_seconds sets how long ASTER waits)"
            ) from error
        if seconds > min(SILENT_SECONDS, self._patience / 2) and not self._said_failing:
            self._said_failing = True
            say(f"tinker: {self.base_url} fails at {what} ({fault}); asking again for up to {self._patience:g} seconds")

    async def _unless_given_up(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run a call. Raises UserError if the server stops answering for too long meanwhile."""

        async def run() -> T:
            return await call()

        task = asyncio.create_task(run())
        try:
            either: list[asyncio.Future[Any]] = [task, self._given_up]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._given_up.result()  # raises
            return await task
        finally:
            task.cancel()

    @staticmethod
    def in_thread(function: Callable[..., T], *arguments: Any, **settings: Any) -> Callable[[], Awaitable[T]]:
        """Turn a blocking call of the client into an async one. It runs in a daemon thread, so that a call that never ends does
        not stop the process from ending."""

        async def call() -> T:
            loop = asyncio.get_running_loop()
            result: asyncio.Future[T] = loop.create_future()

            def settle(value: T | None, error: BaseException | None) -> None:
                if result.done():
                    return
                if error is None:
                    result.set_result(value)  # type: ignore[arg-type]
                else:
                    result.set_exception(error)

            def run() -> None:
                value, fault = None, None
                try:
                    value = function(*arguments, **settings)
                except BaseException as error:  # noqa: BLE001 - passed to the caller
                    fault = error
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(settle, value, fault)

            threading.Thread(target=run, name="tinker-call", daemon=True).start()
            return await result

        return call

    # -- models

    async def create_model(self, base_model: str, rank: int, seed: int, state: str | None, optimizer: bool) -> Any:
        """A training client for the base model or for a saved state, with the optimizer's state if asked. Raises UserError or
        EngineLost."""

        made: list[str] = []

        def create() -> Any:
            client = self._client.create_lora_training_client(base_model, rank=rank, seed=seed, train_unembed=False)
            made.append(client.model_id)
            if state is not None:
                load = client.load_state_with_optimizer if optimizer else client.load_state
                load(state).result()
            return client

        try:
            return await self._unless_given_up(self.in_thread(create))
        except BaseException as error:
            # A model without its state is useless, and a server that trains all parameters has room for one model.
            for model_id in made:
                await self.unload(model_id)
            if isinstance(error, UserError) or not isinstance(error, Exception):
                raise
            said, fault = _said(error), describe(error)
            unknown_state = state is not None and "heckpoint" in said and not is_passing(error)
            if not unknown_state and (is_gone(error) or is_passing(error)):
                raise EngineLost(
                    f"the Tinker server at {self.base_url} was lost while the policy was opened ({fault})"
                ) from error
            if RANK.search(said):
                raise UserError(
                    f"policy.lora_rank: {rank}: the Tinker server at {self.base_url} rejects it: {fault} (0 trains all "
                    "parameters, which SkyRL's FSDP and Megatron backends do and its JAX backend does not)"
                ) from error
            if unknown_state:
                raise UserError(
                    f"{state}: the Tinker server at {self.base_url} does not have this state ({fault}); start it with the same "
                    "--database-url and --checkpoints-base as before"
                ) from error
            raise UserError(f"the Tinker server at {self.base_url} cannot open the policy: {fault}") from error

    async def unload(self, model_id: str) -> None:
        """Free a model on the server. If the request does not arrive, the server frees it by itself some minutes later."""
        await self._tidy("POST", "/api/v1/unload_model", json={"model_id": model_id, "type": "unload_model"})

    async def forget(self, state: str) -> None:
        """Delete a saved state on the server."""
        model_id, _, checkpoint = state.removeprefix("tinker://").partition("/")
        await self._tidy("DELETE", f"/api/v1/training_runs/{model_id}/checkpoints/{checkpoint}")

    async def _tidy(self, method: str, path: str, **settings: Any) -> None:
        """Send a request that frees something. No run depends on its success, so errors are ignored. Nothing is sent after the
        server was given up.

        After a failed connection it is sent once more: a connection that was kept open may have been closed meanwhile, or this
        process may have been suspended past its timeout."""
        for _ in range(2):
            if self._given_up.done():
                return
            with contextlib.suppress(httpx2.HTTPError, OSError):
                await self._http.request(method, path, **settings)
                return


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of the client, which wraps some in a ValueError."""
    status = getattr(error, "status_code", None)
    if status is None and (found := STATUS.search(str(error))):
        status = int(found.group(1))
    return status


def is_gone(error: BaseException) -> bool:
    """Whether the server reports that it no longer has the model or the request."""
    return status_of(error) in (404, 410) or bool(GONE.search(_said(error)))


def is_result_lost(error: BaseException) -> bool:
    """Whether the server accepted the request but no longer has its result. The client raises this error for HTTP status
    410."""
    return isinstance(error, RetryableException)


def is_passing(error: BaseException) -> bool:
    """Whether the connection failed or the server was busy, so that the fate of the request is unknown."""
    if isinstance(error, tinker.APIConnectionError | TimeoutError | ConnectionError):
        return True
    status = status_of(error)
    return is_result_lost(error) or (status is not None and (status in (408, 409, 429) or status >= 500))


def describe(error: BaseException) -> str:
    """The server's error in one line of limited length, without the text that the client adds."""
    return one_line(_said(error), LONGEST_FAULT)


def _said(error: BaseException) -> str:
    """The server's whole error, because the words that identify a fault may come last."""
    text = one_line(error, None)
    found = re.search(r"'detail': (['\"])(.*?)\1\}", text)
    return found.group(2) if found else text
