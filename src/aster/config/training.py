"""The sections of training: SFT and GRPO."""

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
    algorithm: Algorithm = Algorithm()
    """Advantages and loss."""
    learning_rate: PositiveFloat = 1e-6
    """Reproduction: 1e-6, flat."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Linear warm-up of the learning rate over the first steps of RL: Adam's first steps follow noise."""
    final_rate: Share = 1.0
    """Share of ``learning_rate`` that a linear decay over all steps ends at. 1 is flat, as in the reproduction."""
    clip_low: Share = 0.2
    """GRPO: probability ratios below 1 - clip_low are clipped. Paper: 0.2."""
    clip_high: Share = 0.28
    """GRPO: probability ratios above 1 + clip_high are clipped. Paper: 0.28."""
    dual_clip: Annotated[float, Field(gt=1.0)] = 10.0
    """GRPO: bound on the ratio where the advantage is negative (dual clip). Reproduction: 10."""
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
    evaluate_every: Positive | None = None
    """Steps between evaluations of the policy on held-out problems while it trains, one attempt at each of
    ``evaluate_problems``. They are logged as ``held_out``. None: only the stage ``evaluate`` measures it."""
    evaluate_problems: Positive = 64
    """Held-out problems of these evaluations."""
    checkpoint_every: Positive = 1
    """Steps between checkpoints: what an interrupt can cost. Raise it for a large model."""

    @model_validator(mode="after")
    def _check(self) -> Rl:
        if self.evaluate_every is not None and self.max_staleness:
            raise ValueError(
                "evaluate_every: with max_staleness the sampler has older weights while the policy is trained; leave one out"
            )
        return self
