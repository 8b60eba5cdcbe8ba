"""The line to a Tinker server: requests that are sent again where that is safe, and one error where it is not.

The ``tinker`` client numbers a model's training requests and sends one again, under the same number, where the connection
failed; the server does each number once. So a lost connection never doubles a step. What the client does not do is give up: it
asks for the result of a request that was taken until it comes. :class:`Service` watches the server beside it, and says what
became of the request:

- the server does not answer: the request waits, up to ``policy.patience_seconds``; then UserError.
- it answers and does not know the policy, as after it was started again: EngineLost. So too where the client could not find out
  whether a step was done.
- it answers, and fails at the request again and again, or is too busy for it: a request that changes nothing is sent again, for
  ``policy.patience_seconds`` after its first failure; then UserError. The client keeps two things to itself and waits them out:
  a turn that the server is too busy to take (429), and errors of the server as the result of a request is fetched.
- it refuses the request: UserError in training, RuntimeError for a turn, which is then that trajectory's fault alone.

Turns, passes, steps, checkpoints and the sampler's weights pass through :meth:`Service.ask`, opening a model through
:meth:`Service.create_model`. What frees something on the server, and the looks at whether it is there, are sent beside them.
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
"""The client insists on a key of this form; servers of one's own do not look at it."""
ENTER_SECONDS = 20.0
"""For the first answer of a server that this process has not met. Its address may be wrong; that is said soon."""
MET: set[str] = set()
"""Addresses at which a Tinker server has answered this process. One that is away when a lost policy is opened again gets the
whole patience, as one that goes away in mid-request does."""
LOOK_SECONDS = 3.0
"""Between two looks at whether the server answers."""
SILENT_SECONDS = 15.0
"""A server that has not answered for so long is said to be silent. A busy one may take a few seconds."""
LONGEST_WAIT = 30.0
"""Most seconds between two attempts at a turn."""
LONGEST_FAULT = 1000
"""Characters of what the server said that are shown: some put a traceback before it."""
GONE = re.compile(
    r"not loaded|(model|session|sampler|future) not found|unloaded|expired|promise (expired|broken)", re.IGNORECASE
)
"""What a server says of a policy that it does not have any more."""
RANK = re.compile(r"lora[_ ]rank|\brank (must|of|\d+)", re.IGNORECASE)
"""What a server says of a rank of adapters that it does not train. Processes have ranks too (``[rank0]: ...``)."""
STATUS = re.compile(r"\(?status[ =](\d{3})\)?")


class Service:
    """One server, for one event loop. Await :meth:`connect` first, and :meth:`close` at the end."""

    def __init__(self, base_url: str, patience: float) -> None:
        """UserError where the address is none, or the key is not one that the client takes."""
        self.base_url = base_url.rstrip("/")
        self._patience = patience
        key = os.environ.get(KEY, "") or NO_KEY
        if not key.startswith(("tml-", "eyJ")):
            raise UserError(f"{KEY}: the Tinker client takes keys that begin with tml-; this one does not")
        try:
            self._http = httpx2.AsyncClient(base_url=self.base_url, headers={"X-API-Key": key}, timeout=10.0)
        except httpx2.InvalidURL as error:
            raise UserError(f"policy.base_url: {self.base_url} is no address ({error}); mend it") from None
        # The client would send reports about the run to the server.
        os.environ.setdefault("TINKER_TELEMETRY", "0")
        self._client = tinker.ServiceClient(base_url=self.base_url, api_key=key)
        self._watcher: asyncio.Task[None] | None = None
        self._said_failing = False
        self._given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- the server

    async def connect(self) -> list[tinker.types.SupportedModel]:
        """Wait for the server's first answer; returns the models that it serves. UserError where there is no Tinker server."""
        met = self.base_url in MET
        began = time.monotonic()
        said = False
        while (fault := await self._look()) is not None:
            waited = time.monotonic() - began
            if met and waited > self._patience:
                raise self._silent(fault)
            if not met and waited > min(ENTER_SECONDS, self._patience):
                raise UserError(
                    f"policy.base_url: no Tinker server answers at {self.base_url} ({fault}); start it, or mend the address"
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
        """None where a Tinker server answers, else what is wrong. UserError where something else does."""
        try:
            answer = await self._http.get("/api/v1/healthz")
        except (httpx2.HTTPError, OSError) as error:
            return type(error).__name__
        if answer.status_code >= 500:
            return f"HTTP status {answer.status_code}"
        if answer.status_code == 404 and self._watcher is None:
            raise UserError(
                f"policy.base_url: {self.base_url} answers, but is no Tinker server (it has no /api/v1/healthz); mend it"
            )
        return None

    async def _watch(self) -> None:
        """Notice when the server falls silent, and say so; give up when it stays silent."""
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
            "start it again and give the command again: the run resumes (policy.patience_seconds is how long it waits)"
        )

    async def close(self) -> None:
        """Stop watching, close the connections and let the session on the server end."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._given_up.done():
            self._given_up.exception()  # heard of
        await self._http.aclose()
        # Without its client's heartbeat a session ends on the server, and with it whatever it still holds. The client has no
        # call for that: its holders are what has one.
        for holder in (self._client._session_holder, self._client._rest_holder):
            if holder is not None:
                holder.close()

    # -- requests

    async def ask(self, what: str, call: Callable[[], Awaitable[T]], *, repeat: bool = False, turn: bool = False) -> T:
        """The result of a request; ``what`` names it in errors.

        ``repeat``: the request changes nothing on the server, so it is sent again after a failed connection, and where the
        server fails at it or is busy, until the patience is over. ``turn``: it is one turn of many. Raises UserError,
        EngineLost or, for a turn that the server refuses, RuntimeError."""
        pause = 1.0
        failed: float | None = None
        while True:
            try:
                result = await self._unless_given_up(call)
            except (UserError, EngineLost):
                raise
            except Exception as error:
                fault = describe(error)
                # A result that the server does not have any more is asked for anew where that is safe: whether it has lost the
                # policy too, the next answer tells.
                if is_gone(error) and not (repeat and is_result_lost(error)):
                    raise EngineLost(
                        f"the Tinker server at {self.base_url} has lost the policy, as when it is started again ({fault})"
                    ) from error
                if is_passing(error):
                    if not repeat:
                        raise EngineLost(
                            f"the Tinker server at {self.base_url} did not say whether it did {what} ({fault})"
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
        """What to tell of a request that has failed for ``seconds``: nothing at first, then one line for all requests, at last
        UserError."""
        if seconds > self._patience:
            raise UserError(
                f"policy.base_url: the Tinker server at {self.base_url} answers, but has failed at {what} for "
                f"{self._patience:g} seconds ({fault}); look at its log, mend it and give the command again: the run resumes "
                "(policy.patience_seconds is how long it waits)"
            ) from error
        if seconds > min(SILENT_SECONDS, self._patience / 2) and not self._said_failing:
            self._said_failing = True
            say(f"tinker: {self.base_url} fails at {what} ({fault}); asking again for up to {self._patience:g} seconds")

    async def _unless_given_up(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run a call, unless the server stays silent meanwhile."""

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
        """A blocking call of the client as an awaitable one. In a daemon thread: one that never ends must not keep the
        process from ending."""

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
                except BaseException as error:  # noqa: BLE001 - handed over
                    fault = error
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(settle, value, fault)

            threading.Thread(target=run, name="tinker-call", daemon=True).start()
            return await result

        return call

    # -- models

    async def create_model(self, base_model: str, rank: int, seed: int, state: str | None, optimizer: bool) -> Any:
        """A training client on the base model or on a saved state, with the optimizer's if asked."""

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
            # A model that has no state is of no use; a server that trains all parameters has room for one.
            for model_id in made:
                await self.unload(model_id)
            if isinstance(error, UserError) or not isinstance(error, Exception):
                raise
            said, fault = _said(error), describe(error)
            unknown_state = state is not None and "heckpoint" in said and not is_passing(error)
            if not unknown_state and (is_gone(error) or is_passing(error)):
                raise EngineLost(f"the Tinker server at {self.base_url} was lost as the policy was opened ({fault})") from error
            if RANK.search(said):
                raise UserError(
                    f"policy.lora_rank: {rank}: the Tinker server at {self.base_url} refuses it: {fault} (0 trains all "
                    "parameters, which SkyRL's FSDP and Megatron backends do and its JAX backend does not)"
                ) from error
            if unknown_state:
                raise UserError(
                    f"{state}: the Tinker server at {self.base_url} does not have this state ({fault}); start it with the same "
                    "--database-url and --checkpoints-base as before"
                ) from error
            raise UserError(f"the Tinker server at {self.base_url} cannot open the policy: {fault}") from error

    async def unload(self, model_id: str) -> None:
        """Let the server free a model. It does so by itself some minutes later where this does not reach it."""
        await self._tidy("POST", "/api/v1/unload_model", json={"model_id": model_id, "type": "unload_model"})

    async def forget(self, state: str) -> None:
        """Let the server delete a saved state."""
        model_id, _, checkpoint = state.removeprefix("tinker://").partition("/")
        await self._tidy("DELETE", f"/api/v1/training_runs/{model_id}/checkpoints/{checkpoint}")

    async def _tidy(self, method: str, path: str, **settings: Any) -> None:
        """A request that frees something; no run depends on its success. None is sent to a server that was given up.

        It is sent once more where the connection fails: one that was kept open may be closed by now, and a process that stood
        still finds its time over."""
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
    """Whether the server says that it does not have the model, or the request, any more."""
    return status_of(error) in (404, 410) or bool(GONE.search(_said(error)))


def is_result_lost(error: BaseException) -> bool:
    """Whether the server took the request and does not have its result any more (the client's name for HTTP status 410)."""
    return isinstance(error, RetryableException)


def is_passing(error: BaseException) -> bool:
    """Whether the connection failed, or the server was busy: nothing is known about the request."""
    if isinstance(error, tinker.APIConnectionError | TimeoutError | ConnectionError):
        return True
    status = status_of(error)
    return is_result_lost(error) or (status is not None and (status in (408, 409, 429) or status >= 500))


def describe(error: BaseException) -> str:
    """What the server said, in one line that is not too long: the client puts it in a frame of its own."""
    return one_line(_said(error), LONGEST_FAULT)


def _said(error: BaseException) -> str:
    """All that the server said: the words by which a fault is known may come last."""
    text = one_line(error, None)
    found = re.search(r"'detail': (['\"])(.*?)\1\}", text)
    return found.group(2) if found else text
