"""The whole recipe. The pipeline, the stages and the command line see it; rooms below take their own sections."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from aster.config.curation import WITHOUT_SFT, ColdStart, ColdStartOrSet, Curate
from aster.config.data import Problems
from aster.config.engine import EngineConfig, ForceTool, Model, Policy, Rollout, Sandbox
from aster.config.environment import Environment, Tool
from aster.config.evaluation import Evaluate
from aster.config.section import Section
from aster.config.synthesis import Synthesize
from aster.config.training import Rl, Sft

STAGES = ("synthesize", "curate", "sft", "rl", "evaluate", "report")
COLD_START_STAGES = ("synthesize", "curate", "sft")


class Recipe(Section):
    """One run of the method."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Names the run folder: ``runs/NAME-COLD_START-sSEED`` unless ``--run`` says otherwise.
    Letters, digits, dots, underscores and hyphens."""
    seed: int = 1
    """Every random choice of the run derives from it."""
    cold_start: ColdStartOrSet = ColdStart.ASTER
    """Where RL starts from: one of the paper's five, our rival ``program``, or a set of trajectories by its path: a file of
    transcripts, or a run folder."""
    beside: list[ColdStart] = []
    """Cold starts to run beside this one, each in a process and folder of its own, where a core is free for it."""
    model: Model = Model()
    """The base model."""
    policy: Policy = Policy()
    """The engine that samples and trains it."""
    problems: Problems = Problems()
    """What is asked in training and in evaluation."""
    environment: Environment = Environment()
    """What an attempt is worth, and how it is asked for."""
    tools: list[Tool] = [Tool()]
    """What the model may call."""
    sandbox: Sandbox = Sandbox()
    """Where the Python tool runs."""
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

    @property
    def has_sft(self) -> bool:
        """Whether there is a cold start to train on."""
        return self.cold_start not in WITHOUT_SFT

    @property
    def stages(self) -> list[str]:
        """The stages of a run, in order: no cold start without SFT, and nothing to synthesize where a set is given."""
        if self.cold_start_set is not None:
            return [name for name in STAGES if name != "synthesize"]
        return [name for name in STAGES if self.has_sft or name not in COLD_START_STAGES]

    @property
    def cold_start_set(self) -> str | None:
        """The path of the set that is the cold start; None for a preset."""
        return None if isinstance(self.cold_start, ColdStart) else self.cold_start

    @property
    def engine(self) -> EngineConfig:
        """What opening an engine takes of the recipe."""
        return EngineConfig(model=self.model, policy=self.policy, rollout=self.rollout, seed=self.seed)

    @property
    def demand(self) -> ForceTool:
        """The texts that demand the tool in every prompt of RL and evaluation: empty but for ``zero_force_tool``."""
        return self.rollout.force_tool if self.cold_start is ColdStart.ZERO_FORCE_TOOL else ForceTool(system="")

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
        others = [name for name in self.beside if name != self.cold_start]
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
