"""vLLM samples and this process trains: ``policy.sampler: vllm``.

vLLM runs as a separate server process. This module starts and ends it, and reaches it over a Unix socket in a directory that no
other user can enter. It does not use ``AsyncLLM`` in this process, because vLLM pins its own torch and transformers. As a
separate process it can have its own environment (``policy.vllm_python``), and its crash does not end the training. Turns are
requested as from any endpoint (:mod:`aster.engines.endpoint`).

Weights are handed over as safetensors in a folder in memory (``/dev/shm`` where it has room), and vLLM's own ``reload_weights``
reads them there. No code of ours runs in vLLM, and the same calls work on a CPU and on a GPU. One refresh is

    pause_sampler      POST /sleep?level=2&mode=abort      vLLM returns the turns it samples, cut; weights and cache leave the
                       GPU (training)
    refresh_sampler    the current weights are written
                       POST /wake_up?tags=weights          memory for the weights again
                       POST /collective_rpc                reload_weights
                       POST /wake_up?tags=kv_cache         memory for the cache, which is empty; sampling continues

or, with ``policy.vllm_sleep: false``, /pause and /resume around the reload. A turn that was cut continues afterwards: its
tokens so far become part of its prompt, which the new weights read. These paths are vLLM's paths for RL and need its
VLLM_SERVER_DEV_MODE.

The server starts with weights of zero and gets the real weights by a refresh, which is then checked. So a successful start
proves that refreshing works. If the server ends, it is started again with its last weights, at most :data:`RESTARTS` times.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from aster.config import EngineConfig
from aster.engines.base import AdamStep, Completion, Loss, SamplingParams, TrainingSample
from aster.engines.endpoint import EndpointSampler, probe
from aster.engines.handover import blank, roomy_directory, untie, weights_bytes, write_merged
from aster.engines.local.engine import LocalEngine
from aster.engines.local.loading import context_of, require_context
from aster.errors import UserError
from aster.extras import install_command
from aster.http import Server, ServerError
from aster.process import end_group, start_group
from aster.terminal import say

NAME = "policy"
"""The model's name on the server."""
START_SECONDS = 900.0
"""Most seconds for a start: loading, compiling, capturing graphs."""
TERM_SECONDS = 20.0
"""Seconds that a server has to end by itself before it is killed."""
COMMAND_SECONDS = 600.0
"""Most seconds for a sleep, a wake-up or a reload."""
RESTARTS = 3
CHECKED_TOKENS = 16
APART = 0.25
"""The largest average difference, in nats, between the two engines' log-probabilities of a token. In bfloat16 they differ by
some hundredths."""


class VllmServer:
    """vLLM in a separate process. The directory of its socket is deleted if this process is killed."""

    def __init__(self, command: list[str], environment: dict[str, str], socket: Path, log: Path) -> None:
        self.command, self.environment, self.socket, self.log = command, environment, socket, log
        self.http = Server("http://vllm", socket=socket, field="policy.sampler")
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the process and wait until it answers. Raises UserError where it does not answer."""
        await self.stop()
        self.socket.unlink(missing_ok=True)
        self.starts += 1
        self._output = open(self.log, "ab")  # noqa: SIM115 - stop() closes it
        self._process = start_group(
            self.command,
            seconds=TERM_SECONDS,
            folder=self.socket.parent,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            if not self.alive:
                raise UserError(
                    f"policy.sampler: vLLM did not start (exit code {self._process.poll()}): {last_error(self.log)}; "
                    f"its log is {self.log}"
                )
            if time.monotonic() > deadline:
                raise UserError(f"policy.sampler: vLLM did not answer within {START_SECONDS:g} s; its log is {self.log}")
            try:
                await self.http.ask("GET", "/health", seconds=2.0)
                return
            except ServerError:
                await asyncio.sleep(0.2)

    async def stop(self) -> None:
        """End the process and its child processes."""
        process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(end_group, process, TERM_SECONDS)
        if self._output is not None:
            self._output.close()


class VllmEngine:
    """An engine that is trained as a :class:`LocalEngine` and sampled by vLLM."""

    def __init__(
        self,
        config: EngineConfig,
        local: LocalEngine,
        server: VllmServer,
        sampler: EndpointSampler,
        folder: Path,
        overlapped: bool,
    ) -> None:
        """``overlapped``: the policy is sampled while it is trained, so vLLM neither pauses nor sleeps during training."""
        self.local, self.server, self.sampler, self.folder, self.overlapped = local, server, sampler, folder, overlapped
        self.sleeps = config.policy.vllm_sleep and not overlapped
        self.dialect = local.dialect
        self._paused = False
        self._starting = asyncio.Lock()

    @property
    def weights(self) -> Path:
        """The folder in which weights are handed to vLLM."""
        return self.folder / "weights"

    # -- Sampler

    def open(self, sequence: str) -> None:
        """A trajectory begins."""
        self.sampler.open(sequence)

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """Sample one turn. If the server ends during the turn, restart it and sample the turn from its beginning."""
        while True:
            starts = self.server.starts
            try:
                return await self.sampler.sample(token_ids, params)
            except ServerError:
                if not await self._revive(starts):
                    raise

    def release(self, sequence: str) -> None:
        """A trajectory ended."""
        self.sampler.release(sequence)

    async def pause_sampler(self) -> None:
        """Make turns wait; vLLM frees its GPU memory."""
        if not self.overlapped:
            await self._pause()

    async def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.sampler.hold()
            await self._command("/sleep?level=2&mode=abort" if self.sleeps else "/pause?mode=abort")

    async def refresh_sampler(self) -> None:
        """Hand the current weights to vLLM."""
        await self._pause()
        await self._write()
        if self.sleeps:
            await self.local.give_memory_back()
            await self._command("/wake_up?tags=weights")
        await self._command("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(self.weights)}})
        await self._command("/wake_up?tags=kv_cache" if self.sleeps else "/resume")
        self._paused = False
        self.sampler.resume()

    async def begin(self) -> None:
        """Start the server with weights of zero, and then hand it the current weights as after every step. Raises UserError
        where it does not sample from them afterwards: it would use old weights after every step."""
        await self._write()
        await asyncio.to_thread(blank, self.weights)
        await self.server.start()
        await self.refresh_sampler()
        prompt = self.dialect.prompt_ids("1 + 1")[-CHECKED_TOKENS:]
        completion = await self.sample(prompt, SamplingParams(max_tokens=CHECKED_TOKENS))
        ids = prompt + completion.token_ids
        mask = [0] * len(prompt) + [1] * len(completion.token_ids)
        (ours,) = await self.local.forward([TrainingSample(ids, mask, 1.0)])
        apart = sum(abs(a - b) for a, b in zip(ours, completion.logprobs, strict=True)) / len(ours)
        if not apart < APART:
            raise UserError(
                "policy.sampler: vLLM does not sample from the weights it was handed: its log-probabilities are "
                f"{apart:.3f} nats from the trainer's; use sampler=local or another version of vLLM; its log: {self.server.log}"
            )

    async def _write(self) -> None:
        """Write the current weights to the folder that vLLM reads."""
        model = self.local.model
        if self.local.adapters is None:
            await self.local.save(self.weights, optimizer=False)
        else:
            await asyncio.to_thread(write_merged, model, self.local.tokenizer, self.weights)
        if next(model.parameters()).device.type == "cpu" and getattr(model.config, "tie_word_embeddings", False):
            # On a CPU, vLLM 0.32 packs a tied output layer only once, and a reload does not update it.
            await asyncio.to_thread(untie, self.weights, model.get_output_embeddings().weight)

    async def _command(self, path: str, body: dict[str, Any] | None = None) -> None:
        while True:
            starts = self.server.starts
            try:
                await self.server.http.ask("POST", path, body, seconds=COMMAND_SECONDS)
                return
            except ServerError as error:
                if not await self._revive(starts):
                    raise UserError(f"policy.sampler: vLLM: {error}; its log is {self.server.log}") from error

    async def _revive(self, starts: int) -> bool:
        """Start the server again if it has ended. ``starts``: how often it had been started before the failed request. False
        where a restart cannot help."""
        async with self._starting:
            if self.server.starts > starts:
                return True
            if self.server.alive or self.server.starts > RESTARTS:
                return False
            say(f"vLLM has ended ({last_error(self.server.log)}); starting it again")
            await self.local.give_memory_back()
            await self.server.start()
            return True

    # -- training: the local policy's

    async def forward(self, samples: list[TrainingSample]) -> list[list[float]]:
        """Log-probabilities of the trained tokens of each sample."""
        return await self.local.forward(samples)

    async def forward_backward(self, samples: list[TrainingSample], loss: Loss) -> dict[str, float]:
        """Add the gradient of the summed loss."""
        return await self.local.forward_backward(samples, loss)

    async def optim_step(self, adam: AdamStep) -> dict[str, float]:
        """One AdamW step."""
        return await self.local.optim_step(adam)

    async def save(self, path: Path, optimizer: bool = True) -> None:
        """Write a checkpoint."""
        await self.local.save(path, optimizer)

    async def close(self, keep_log: bool = False) -> None:
        """End the server and the local engine's thread."""
        await self.server.stop()
        await self.server.http.close()
        await self.local.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if not keep_log:
            self.server.log.unlink(missing_ok=True)


async def start_vllm(
    config: EngineConfig, checkpoint: Path | None, *, optimizer: bool, capacity: int | None, overlapped: bool
) -> VllmEngine | LocalEngine:
    """Open the policy and start a server for it. Without ``capacity`` nothing is sampled, so it is only a LocalEngine.

    Raises UserError where vLLM is not installed or does not start."""
    if capacity is None:
        return LocalEngine(config, checkpoint, optimizer=optimizer)
    require_vllm(config.policy.vllm_python)
    local = LocalEngine(config, checkpoint, optimizer=optimizer)
    policy: VllmEngine | None = None
    try:
        require_context(context_of(local.model.config), capacity)
        descriptor, log = tempfile.mkstemp(prefix="aster-vllm-", suffix=".log")
        os.close(descriptor)
        folder = Path(tempfile.mkdtemp(prefix="aster-vllm-", dir=roomy_directory(weights_bytes(local.model))))
        command, environment = command_for(config, local.model, folder, capacity)
        server = VllmServer(command, environment, folder / "socket", Path(log))
        sampler = EndpointSampler(server.http, NAME, config.rollout.slots, config.policy.request_seconds)
        policy = VllmEngine(config, local, server, sampler, folder, overlapped)
        await policy.begin()
        await probe(server.http, local.tokenizer, NAME, capacity, "policy.sampler: vllm")
    except BaseException:
        await (local.close() if policy is None else policy.close(keep_log=True))
        raise
    return policy


def require_vllm(python: str) -> None:
    """Raise UserError where the Python that is to start vLLM does not have it."""
    if not python:
        found = importlib.util.find_spec("vllm") is not None
    else:
        check = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
        try:
            found = subprocess.run([python, "-c", check], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
        except OSError as error:
            raise UserError(f"policy.vllm_python: {python}: cannot be run ({error.strerror})") from None
    if not found:
        raise UserError(
            f"policy.vllm_python: {python or 'the Python that runs ASTER'} has no vLLM; set it to the Python of an "
            f"environment that has vLLM, or install vLLM beside ASTER ({install_command('vllm')})"
        )


def command_for(config: EngineConfig, model: Any, folder: Path, capacity: int) -> tuple[list[str], dict[str, str]]:
    """vLLM's command line and environment."""
    settings, device = config.policy, next(model.parameters()).device
    command = [
        settings.vllm_python or sys.executable,
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(folder / "weights")),
        *("--served-model-name", NAME),
        *("--uds", str(folder / "socket")),
        *("--dtype", config.model.dtype),
        *("--max-model-len", str(capacity)),
        *("--max-num-seqs", str(config.rollout.slots)),
        *("--generation-config", "vllm"),
        *("--logprobs-mode", "raw_logprobs"),
        "--enable-prefix-caching",
        # A line per turn would make the log grow without limit.
        "--disable-uvicorn-access-log",
    ]
    environment = {
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if device.type == "cuda":
        visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        index = device.index or 0
        environment["CUDA_VISIBLE_DEVICES"] = visible[index] if index < len(visible) and visible[index] else str(index)
        command += ["--gpu-memory-utilization", str(settings.vllm_memory)]
        if settings.vllm_sleep:
            command.append("--enable-sleep-mode")
    else:
        # Compiling takes minutes, more than it saves for the small models of a CPU.
        command.append("--enforce-eager")
        environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, -(-cache_bytes(config, model) >> 30))))
        if config.model.threads:
            environment["OMP_NUM_THREADS"] = str(config.model.threads)
    return command, environment


def cache_bytes(config: EngineConfig, model: Any) -> int:
    """Bytes of the keys and values of ``rollout.cache_tokens`` tokens."""
    shape = model.config
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    element = next(model.parameters()).element_size()
    return config.rollout.cache_tokens * 2 * shape.num_hidden_layers * shape.num_key_value_heads * head_dim * element


def last_error(log: Path) -> str:
    """The last line of a log that names an error, or else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return ((errors or lines or ["no output"])[-1])[-300:]
