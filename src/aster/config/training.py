"""The sections for training: SFT and RL."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from aster.config.data import Limits
from aster.config.environment import Algorithm
from aster.config.section import Positive, PositiveFloat, Section, Share


class Adam(Section):
    beta1: Share = 0.9
    """Decay of the running mean of gradients."""
    beta2: Share = 0.95
    """Decay of the running mean of squared gradients."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator of Adam's update, against division by zero."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay (AdamW)."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient's global norm is clipped to this."""


class SftStage(Section):
    epochs: Positive = 3
    """Passes over the curated trajectories. Reproduction: 6."""
    trained_tokens: Positive | None = None
    """Train on this many sampled tokens instead of ``epochs`` passes. Use it to give the runs of a comparison equal
    training."""
    learning_rate: PositiveFloat = 3e-5
    """Learning rate, constant after the warm-up. Reproduction: 3e-5, constant."""
    batch: Positive = 32
    """Trajectories per optimizer step."""
    min_calls: Annotated[int, Field(ge=0)] = 0
    """This stage uses only trajectories with at least this many tool calls."""
    context_tokens: Positive = 32768
    """Longer trajectories, in tokens, are left out; their number is reported. Reproduction: 32,768."""


class Sft(Section):
    stages: Annotated[list[SftStage], Field(min_length=1)] = [SftStage(), SftStage()]
    """The stages of SFT, run in order. Paper: two stages."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps of linear warm-up of the learning rate at the beginning of each stage."""
    adam: Adam = Adam()
    """The optimizer."""
    checkpoint_every: Positive = 1
    """Optimizer steps between checkpoints: an interrupt loses at most this many. Raise it for a large model."""


class RlStage(Section):
    steps: Positive | None = None
    """Steps of this stage, one batch each. None: ``rl.steps``."""
    limits: Limits = Limits()
    """What one trajectory may spend. Paper: 18K context, then 32K; at most 50 tool calls in both."""
    drop_solved: bool = False
    """Leave out the problems (by id) for which every trajectory of the earlier stages was rewarded. Paper: true in stage 2."""


class Rl(Section):
    steps: Positive = 30
    """Steps of each stage that does not set its own."""
    stages: Annotated[list[RlStage], Field(min_length=1)] = [RlStage(), RlStage(drop_solved=True)]
    """The stages of RL, run in order. Paper: two."""
    train_problems: Positive = 2000
    """How many training problems to draw prompts from (all of the file, if it has fewer)."""
    prompts: Positive = 128
    """Problems per step. Reproduction: 128."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Trajectories per problem; together they are a group. Reproduction: 8."""
    minibatches: Positive = 2
    """Optimizer steps per batch. The groups of a batch are divided evenly among them. Reproduction: 2 (128 prompts, minibatch
    64)."""
    algorithm: Algorithm = Algorithm()
    """The algorithm, which computes advantages and loss."""
    learning_rate: PositiveFloat = 1e-6
    """Learning rate after the warm-up. Reproduction: 1e-6, constant."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up of the learning rate at the beginning of RL, because Adam's first steps follow noise."""
    final_rate: Share = 1.0
    """Share of ``learning_rate`` at the last step; the rate decays linearly over all steps. 1: constant, as in the
    reproduction."""
    clip_low: Share = 0.2
    """Only for GRPO: probability ratios below 1 - clip_low are clipped. Paper: 0.2."""
    clip_high: Share = 0.28
    """Only for GRPO: probability ratios above 1 + clip_high are clipped. Paper: 0.28."""
    dual_clip: Annotated[float, Field(gt=1.0)] = 10.0
    """Only for GRPO: upper limit of the ratio where the advantage is negative (dual clip). Reproduction: 10."""
    importance_cap: PositiveFloat = 2.0
    """Truncated importance sampling: upper limit of the trainer's probability divided by the sampler's. Reproduction: 2.0."""
    normalize_std: bool = True
    """true: divide a group's advantages by the standard deviation of its rewards, as GRPO does. false: do not, as in Dr.
    GRPO."""
    resample_equal: Annotated[int, Field(ge=0)] = 0
    """How often a step may draw new problems for groups whose rewards are all equal (DAPO's dynamic sampling). 0: never."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Most steps by which the weights that sample a batch may be older than the weights that are trained on it. 0: strictly
    on-policy; sampling and training take turns. 1 or more: the next batch is sampled while this one is trained on, and
    truncated importance sampling (``importance_cap``) corrects for the difference."""
    batch_seconds: PositiveFloat | None = None
    """Most wall-clock seconds for sampling a batch. Groups that are not finished by then move to the next batch, where their
    trajectories continue. None: every batch waits for its longest trajectory."""
    carry_steps: Positive = 4
    """How often ``batch_seconds`` may move a group to the next batch. After that the batch waits for it. The last batch of a
    stage always waits."""
    temperature: PositiveFloat = 1.0
    """Temperature of the sampling. Log-probabilities are always those of temperature 1."""
    adam: Adam = Adam()
    """The optimizer."""
    evaluate_every: Positive | None = None
    """Steps between evaluations on held-out problems during training, with one attempt at each of ``evaluate_problems``. The
    result is logged as ``held_out``. None: no evaluation before the stage ``evaluate``."""
    evaluate_problems: Positive = 64
    """How many held-out problems the evaluations during training use."""
    checkpoint_every: Positive = 1
    """Steps between checkpoints: an interrupt loses at most this many. Raise it for a large model."""

    @model_validator(mode="after")
    def _check(self) -> Rl:
        if self.evaluate_every is not None and self.max_staleness:
            raise ValueError(
                "evaluate_every: it cannot be combined with max_staleness (the sampler has older weights); leave one out"
            )
        return self
