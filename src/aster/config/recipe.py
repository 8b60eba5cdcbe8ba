"""The whole recipe. Only the pipeline, the stages and the command line use it; the packages below take their own sections."""

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
    """The settings of one run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """The run's name, a part of its folder's name: ``runs/NAME-COLD_START-sSEED`` unless ``--run`` gives another folder.
    Letters, digits, dots, underscores and hyphens; it begins with a letter or digit."""
    seed: int = 1
    """The seed of every random choice of the run."""
    cold_start: ColdStartOrSet = ColdStart.ASTER
    """Where RL starts from: one of the paper's five cold starts, our own ``program``, or the path of a data set of trajectories
    (a file of transcripts, or a run folder)."""
    beside: list[ColdStart] = []
    """Other cold starts to run at the same time, each in its own process and folder, as far as cores are free."""
    model: Model = Model()
    """The base model."""
    policy: Policy = Policy()
    """The engine that samples and trains the model."""
    problems: Problems = Problems()
    """The problems for training and for evaluation."""
    environment: Environment = Environment()
    """How problems are posed and how attempts are rewarded."""
    tools: list[Tool] = [Tool()]
    """The tools that the model may call."""
    sandbox: Sandbox = Sandbox()
    """The sandbox in which the Python tool runs."""
    rollout: Rollout = Rollout()
    """How trajectories are sampled."""
    synthesize: Synthesize = Synthesize()
    """How the teacher writes trajectories."""
    curate: Curate = Curate()
    """Which of the teacher's trajectories are kept."""
    sft: Sft = Sft()
    """Supervised fine-tuning on the chosen trajectories: the cold start."""
    rl: Rl = Rl()
    """Reinforcement learning (GRPO by default) from the cold start."""
    evaluate: Evaluate = Evaluate()
    """Evaluation: avg@k on held-out problems."""

    @property
    def has_sft(self) -> bool:
        """Whether the cold start has an SFT stage."""
        return self.cold_start not in WITHOUT_SFT

    @property
    def stages(self) -> list[str]:
        """The names of the run's stages, in order. Cold starts without SFT skip synthesize, curate and sft; a data set given as
        the cold start skips synthesize."""
        if self.cold_start_set is not None:
            return [name for name in STAGES if name != "synthesize"]
        return [name for name in STAGES if self.has_sft or name not in COLD_START_STAGES]

    @property
    def cold_start_set(self) -> str | None:
        """The path of the data set given as the cold start; None for a preset."""
        return None if isinstance(self.cold_start, ColdStart) else self.cold_start

    @property
    def engine(self) -> EngineConfig:
        """The settings for opening an engine."""
        return EngineConfig(model=self.model, policy=self.policy, rollout=self.rollout, seed=self.seed)

    @property
    def demand(self) -> ForceTool:
        """The texts that demand the tool in every prompt of RL and evaluation. Empty except for ``zero_force_tool``."""
        return self.rollout.force_tool if self.cold_start is ColdStart.ZERO_FORCE_TOOL else ForceTool(system="")

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.policy.kind == "tinker" and self.rollout.deterministic:
            raise ValueError(
                "rollout.deterministic: a Tinker server decides which sequences it decodes together, so a run cannot "
                "repeat exactly; leave it at false, or use policy.kind=local"
            )
        if self.rollout.deterministic and self.policy.sampler != "local":
            raise ValueError(
                f"rollout.deterministic: with policy.sampler={self.policy.sampler} the server decides which sequences it "
                "decodes together, so a run cannot repeat exactly; leave it at false, or use sampler=local"
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
                "rollout.deterministic: it cannot be combined with rl.max_staleness or rl.batch_seconds; leave them out"
            )
        return self
