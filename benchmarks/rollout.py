"""Rollouts: ASTER's loop, sampler and sandbox beside TRL's tool loop, plain ``generate``, and only the decode steps.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py [--json] [--model lab|smollm2|FOLDER] [--repeats 5] [--cases plain,longtail]
    python benchmarks/rollout.py --device cuda --dtype bfloat16 --shape qwen3-1.7b --trajectories 256

Contestants, all with the same weights, prompts, cells and lengths, in turns within one process:

- **aster**: ``aster.rollout.rollout_batch`` with the local policy and the sandbox, graded: all trajectories in flight, each at
  its own pace; caches live on between turns.
- **trl**: ``GRPOTrainer._generate`` of TRL: its tokenizing, ``generate``, parsing and tool loop. All rows finish a turn, then
  tools run one after another, then the whole dialogues are read again. Its reward and padding are not in the time.
- **generate**: ``transformers``' ``model.generate`` turn by turn on the dialogues so far, tools one after another; no parsing.
- **floor**: the model's plain forward for the same decode steps on a cache that is allocated once; see ``_floors.DecodeFloor``.

Peers run cells in their own process, without isolation, as a plain Python function; aster's run in the sandbox. Lengths are
planned, and ``_plans.py`` says how each contestant is held to the plan and what that costs it. Tokens per second count sampled
tokens over the time of the whole batch.

Two cases: *plain*, with tools that take no time; and *longtail*: one trajectory in eight samples 20 times as many tokens and
calls four times as often, and every call sleeps 0 to ``--seconds`` (uniform, seeded, the same for all).

``ratios``: ``rollout_vs_trl``, ``rollout_vs_generate`` and ``rollout_vs_floor`` (plain), ``longtail_vs_trl`` and
``longtail_vs_generate``: aster's tokens per second over theirs, the median of the ratios within a repeat. ``bandwidth_share``
is the share of the time that memory needs at least for the decode steps, at the bandwidth of a large copy: weights and caches
read once a step. It says something where the weights are larger than the processor's caches.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from _common import finish, print_table, side_by_side, summarize
from _floors import FLOOR_ATTENTION, DecodeFloor, copy_bandwidth
from _models import add_options, open_ours, open_subject, peer_of, synchronize
from _plans import ForcedModel, Plan, Planned, Size, make_plans, python
from _trl import make_trainer

from aster import config as recipe
from aster.chat import Qwen3Dialect
from aster.engines import Sampler
from aster.environments import PythonMath, PythonTool
from aster.rollout import Decoding, Job, RolloutContext, rollout_batch
from aster.types import Budget, StopReason
from aster_sandbox import AnySandbox, make_sandbox

GROUP = 8
"""Completions that TRL counts as one prompt's; and one trajectory of so many is long in the case *longtail*."""
NO_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Scale:
    """Lengths for a model: what fits its context, and a benchmark's patience."""

    plain: Size
    short: Size
    long: Size


SCALES = {
    "lab": Scale(Size((2, 6), (32, 64)), Size((1, 1), (40, 40)), Size((4, 4), (281, 281))),
    "smollm2": Scale(Size((1, 3), (48, 64)), Size((1, 1), (48, 48)), Size((4, 4), (344, 344))),
}
"""A long trajectory has 20 times the sampled tokens of a short one, its final turn included."""
SMOKE = Scale(Size((1, 1), (40, 48)), Size((1, 1), (40, 40)), Size((2, 2), (80, 80)))


class Ours:
    """ASTER's rollout of plans."""

    def __init__(self, policy: Sampler, dialect: Qwen3Dialect, sandbox: AnySandbox, runner: asyncio.Runner) -> None:
        self.policy, self.dialect, self.runner = policy, dialect, runner
        self.environment = PythonMath([PythonTool(sandbox=sandbox)])

    def run(self, plans: list[Plan], repeat: int) -> int:
        """Play the plans; returns the sampled tokens."""
        planned = {id(plan.problem): Planned(self.policy, plan) for plan in plans}
        context = RolloutContext(lambda job: planned[id(job.problem)], self.dialect, self.environment, len(plans))
        jobs = [Job(plan.problem, 0, repeat) for plan in plans]
        budget = Budget(NO_LIMIT, NO_LIMIT, NO_LIMIT, NO_LIMIT, float(NO_LIMIT))
        done = self.runner.run(rollout_batch(jobs, context, budget, Decoding()))
        for plan, trajectory in zip(plans, done, strict=True):
            if trajectory.stop_reason is not StopReason.ANSWERED or len(trajectory.token_ids) != plan.length:
                raise RuntimeError(f"aster did not follow a plan: {trajectory.stop_reason} {trajectory.error}")
        return sum(plan.sampled for plan in plans)


class Trl:
    """TRL's rollout of plans."""

    def __init__(self, model: Any, tokenizer: Any, folder: str, count: int) -> None:
        self.forced = ForcedModel(model)
        group = GROUP if count % GROUP == 0 else count
        self.trainer = make_trainer(
            model, tokenizer, folder, rows=count, microbatches=1, group=group, rewards=lambda **_: [0.0] * count, tools=[python]
        )
        # What its scoring does before it generates.
        self.trainer._sync_tool_dicts = [{"python": python}] * count
        self.trainer._async_tool_dicts = [{}] * count

    def run(self, plans: list[Plan], _repeat: int) -> int:
        """Play the plans; returns the sampled tokens."""
        self.forced.begin(plans)
        prompts = [[{"role": "user", "content": plan.problem.prompt}] for plan in plans]
        prompt_ids, completion_ids, tool_mask, *_ = self.trainer._generate(prompts)
        for plan, prompt, completion, mask in zip(plans, prompt_ids, completion_ids, tool_mask, strict=True):
            if prompt != plan.prompt or len(prompt) + len(completion) != plan.length or sum(mask) != plan.sampled:
                raise RuntimeError("trl did not follow a plan")
        return sum(plan.sampled for plan in plans)


class Generate:
    """``transformers``' generate, turn by turn."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.forced = model, ForcedModel(model)
        self.pad, self.stop = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def run(self, plans: list[Plan], _repeat: int) -> int:
        """Play the plans; returns the sampled tokens."""
        self.forced.begin(plans)
        rows = [list(plan.prompt) for plan in plans]
        for turn in range(max(len(plan.turns) for plan in plans)):
            active = [index for index, plan in enumerate(plans) if len(plan.turns) > turn]
            longest = max(len(rows[index]) for index in active)
            padded = [[self.pad] * (longest - len(rows[index])) + rows[index] for index in active]
            mask = [[0] * (longest - len(rows[index])) + [1] * len(rows[index]) for index in active]
            whole = self.model.generate(
                input_ids=torch.tensor(padded, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                max_new_tokens=max(len(plans[index].turns[turn]) for index in active),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=self.stop,
                pad_token_id=self.pad,
                disable_compile=True,
            )
            for index, drawn in zip(active, whole[:, longest:].tolist(), strict=True):
                plan = plans[index]
                rows[index] += drawn[: drawn.index(self.stop) + 1]
                if turn < len(plan.responses):
                    python(plan.cells[turn])
                    rows[index] += plan.responses[turn]
        if [len(row) for row in rows] != [plan.length for plan in plans]:
            raise RuntimeError("generate did not follow a plan")
        return sum(plan.sampled for plan in plans)


def plans_of(case: str, dialect: Qwen3Dialect, scale: Scale, count: int, seconds: float) -> list[Plan]:
    """The plans of a case."""
    if case == "plain":
        return make_plans(dialect, [scale.plain] * count, seed=1)
    sizes = [scale.long if index % GROUP == 0 else scale.short for index in range(count)]
    return make_plans(dialect, [Size(size.calls, size.tokens, seconds) for size in sizes], seed=2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--trajectories", type=int, default=64, help="in flight at once (default 64)")
    parser.add_argument("--cases", default="plain,longtail", help="which of plain and longtail (default both)")
    parser.add_argument("--seconds", type=float, default=2.0, help="longest tool call of longtail (default 2)")
    parser.add_argument("--repeats", type=int, default=5, help="measured repeats (default 5)")
    parser.add_argument("--smoke", action="store_true", help="a little of everything, in seconds; its numbers mean nothing")
    parser.add_argument("--json", action="store_true", help="the result as JSON in the last line")
    options = parser.parse_args()
    scale, count = SCALES.get(options.model if not options.shape else "lab", SCALES["smollm2"]), options.trajectories
    if options.smoke:
        scale, count, options.repeats, options.seconds = SMOKE, 8, 1, 0.05
    with open_subject(options, "rollout") as subject:
        cases = {case: plans_of(case, subject.dialect, scale, count, options.seconds) for case in options.cases.split(",")}
        room = max(plan.length for plans in cases.values() for plan in plans)
        policy = open_ours(subject, slots=count, capacity=room)
        device = policy.model.device
        result: dict[str, Any] = {
            "benchmark": "rollout", "model": subject.name, "device": device.type, "dtype": options.dtype,
            "trajectories": count, "smoke": options.smoke, "ratios": {},
        }  # fmt: skip
        with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as folder:
            sandbox = make_sandbox(recipe.Sandbox(sessions=max(count, recipe.Sandbox().sessions)), beside_sampler=True)
            runner.run(sandbox.__aenter__())
            try:
                ours = Ours(policy, subject.dialect, sandbox, runner)
                trl = Trl(peer_of(policy.model), subject.tokenizer, folder, count)
                plain, bare = Generate(peer_of(policy.model), subject.tokenizer), peer_of(policy.model, FLOOR_ATTENTION)
                for case, plans in cases.items():
                    measure(case, plans, {"aster": ours.run, "trl": trl.run, "generate": plain.run}, bare, options, result)
            finally:
                runner.run(sandbox.__aexit__(None, None, None))
                runner.run(policy.close())
    finish(result, options.json)


def measure(
    case: str,
    plans: list[Plan],
    contestants: dict[str, Callable[[list[Plan], int], int]],
    model: Any,
    options: argparse.Namespace,
    result: dict[str, Any],
) -> None:
    """Time one case and add it to the result."""

    first = plans[:GROUP]  # enough to warm up

    def timed(play: Callable[[list[Plan], int], int]) -> Callable[[int], int]:
        return lambda repeat: play(plans if repeat else first, repeat)

    runs = {name: timed(play) for name, play in contestants.items()}
    floor = DecodeFloor(
        model, [(plan.sampled, len(plan.prompt), plan.length - len(plan.prompt) - plan.sampled) for plan in plans]
    )
    if case == "plain":
        runs["floor"] = lambda _: floor.run()
    sampled = sorted(plan.sampled for plan in plans)
    lengths = f"{sampled[0]} to {sampled[-1]} sampled tokens, median {sampled[len(sampled) // 2]}"
    calls = sum(len(plan.responses) for plan in plans)
    print(f"\n{result['model']}, {result['device']}: {len(plans)} trajectories of {lengths}; {calls} calls", flush=True)
    # The first case has warmed up everything.
    warm_up = not result["ratios"] and not options.smoke
    rates = side_by_side(runs, options.repeats, warm_up=warm_up)
    synchronize(model.device)
    summary = summarize(rates)
    print_table(case, summary)
    result[case] = summary | {"calls": calls, "sampled": sum(sampled)}
    short = {"plain": "rollout", "longtail": "longtail"}[case]
    result["ratios"] |= {f"{short}_vs_{name}": ratio["median"] for name, ratio in summary["ratio"].items()}
    if case == "plain":
        least = floor.bytes_read() / copy_bandwidth(model.device)
        share = {name: round(least * summary["median"][name] / floor.sampled, 4) for name in ("aster", "floor")}
        result[case]["bandwidth_share"] = share
        print(f"  share of the memory-bandwidth limit: aster {share['aster']:.1%}, floor {share['floor']:.1%}")


if __name__ == "__main__":
    main()
