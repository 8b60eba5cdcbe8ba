"""Runs the stages of a recipe in order, and skips those that are finished."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from aster.beside import Beside
from aster.config import Synthesize, cold_start_name
from aster.config.recipe import Recipe
from aster.data.sets import iterate_set
from aster.environments.problems import evaluation_problems, teaching_problems, training_problems
from aster.errors import UserError
from aster.run import RunFolder, read_json, replacing
from aster.terminal import say
from aster.types import FAULTS
from aster_sandbox import SandboxFailure, SettingsError

NEEDS = {"curate": "synthesize", "sft": "curate", "rl": "sft", "evaluate": "rl"}


def run_all(recipe: Recipe, folder: RunFolder) -> None:
    """Run every stage that is not finished, then print the table of results."""
    reopen_synthesis(recipe, folder)
    pending = [name for name in recipe.stages if folder.summary(name) is None]
    if pending and pending[-1] != "report":
        pending.append("report")  # an existing report was written before the run had ended
    if not pending:
        say(f"{folder.path}: this run is finished; nothing to do (delete the folder or choose another --run to run it again)")
    else:
        if pending != recipe.stages or (folder.path / pending[0]).exists():
            say(f"{folder.path}: resuming at stage {pending[0]}")
        check_inputs(recipe, pending)
        folder.begin()
        with Beside(recipe, folder) as beside:
            for name in pending:
                if name == "report":
                    beside.wait()
                run_one(name, recipe, folder)
    print_results(recipe, folder)


def run_stage(name: str, recipe: Recipe, folder: RunFolder) -> None:
    """Run one stage. Raises UserError where a stage that it needs has not finished."""
    if name not in recipe.stages:
        raise UserError(f"{name}: cold start {cold_start_name(recipe.cold_start)} has no such stage")
    needed = NEEDS.get(name)
    if needed in recipe.stages and folder.summary(str(needed)) is None:
        if name != "evaluate":
            raise UserError(f"{name}: the stage {needed} has not finished in {folder.path}; run it first (aster {needed} ...)")
        say(f"evaluate: {needed} has not finished; evaluating the checkpoints that exist")
    if name == "synthesize":
        reopen_synthesis(recipe, folder)
    if folder.summary(name) is not None and name != "report":
        say(f"{folder.path}: stage {name} is finished; nothing to do")
        return
    check_inputs(recipe, [name])
    folder.begin()
    run_one(name, recipe, folder)
    if name in ("evaluate", "report"):
        print_results(recipe, folder)


def reopen_synthesis(recipe: Recipe, folder: RunFolder) -> None:
    """Reopen a finished synthesis where the recipe now asks an endpoint for more attempts. Once curation has used the attempts,
    only report it."""
    settings, summary = recipe.synthesize, folder.summary("synthesize")
    if settings.teacher != "endpoint" or summary is None:
        return
    more = _asks_for_more(settings, summary, folder.recipe["synthesize"])
    if folder.summary("curate") is not None:
        if more:
            say(
                f"synthesize.{more}: it was raised after curation and has no effect in this run; choose another --run to use it"
            )
    elif more or (settings.retry_failed and summary["failures"] and _has_faults(folder)):
        folder.reopen("synthesize")


def _asks_for_more(settings: Synthesize, summary: dict[str, Any], first: dict[str, Any]) -> str:
    """The name of the field that asks for more than a finished synthesis had, or "": ``problems``, ``attempts``, or
    ``max_cost`` where synthesis had stopped at that limit. ``first``: the recipe's section at the start of the run."""
    ended_at = summary.get("stopped_at_cost")
    if ended_at is not None and (settings.max_cost is None or settings.max_cost > ended_at):
        return "max_cost"
    if settings.problems > summary.get("problems", first["problems"]):
        return "problems"
    return "attempts" if settings.attempts > summary.get("attempts_per_problem", settings.attempts) else ""


def _has_faults(folder: RunFolder) -> bool:
    """Whether some attempts failed in a way that may succeed when repeated. A dialogue longer than the server's context would
    fail again."""
    made = iterate_set(folder.path / "synthesize" / "transcripts.jsonl")
    return any(transcript.stop_reason in FAULTS for transcript in made)


def run_one(name: str, recipe: Recipe, folder: RunFolder) -> None:
    """Run a stage. Its module is imported only here, because it imports torch."""
    if name == "report":
        from aster.report import write_report

        others = [RunFolder.load(path) for _, path in Beside.folders(recipe, folder) if (path / "recipe.yaml").exists()]
        write_report(folder, others)
        folder.finish("report", {"path": "report.html"})
        return
    keep_tokenizer(recipe, folder)
    stage = importlib.import_module(f"aster.{name}")
    try:
        stage.run(recipe, folder)
    except SettingsError as error:
        raise UserError(str(error)) from error
    except SandboxFailure as error:
        raise UserError(f"{name}: {error}") from error


def check_inputs(recipe: Recipe, stages: list[str]) -> None:
    """Check problems, context lengths and packages now. Raises UserError for faults that a stage would find only hours
    later."""
    check_doors(recipe, stages)
    if recipe.policy.sampler == "endpoint":
        refuse_training(recipe, stages)
    if recipe.policy.kind == "local" and recipe.policy.sampler == "vllm":
        from aster.engines.vllm import require_vllm

        require_vllm(recipe.policy.vllm_python)
    if recipe.policy.kind == "local" and recipe.policy.lora_rank:
        from aster.engines.local.adapters import require_peft

        require_peft()
    contexts: dict[str, int] = {}
    if "curate" in stages and recipe.cold_start_set is not None:
        from aster.data.curation.sources import Source

        try:
            Source(Path(recipe.cold_start_set))
        except UserError as error:
            raise UserError(f"cold_start: {error}") from None
    if "synthesize" in stages:
        teaching_problems(recipe.problems, recipe.synthesize.problems, recipe.seed)
        if recipe.synthesize.teacher == "policy":
            contexts["synthesize.limits"] = recipe.synthesize.limits.context_tokens
    if "rl" in stages:
        training_problems(recipe.problems, recipe.rl.train_problems, recipe.seed)
        contexts |= {f"rl.stages.{i}.limits": stage.limits.context_tokens for i, stage in enumerate(recipe.rl.stages)}
    if "evaluate" in stages:
        evaluation_problems(recipe.problems, recipe.evaluate.problems)
        contexts["evaluate.limits"] = recipe.evaluate.limits.context_tokens
    for section, tokens in contexts.items():
        if recipe.policy.samples_here and tokens > recipe.rollout.cache_tokens:
            raise UserError(
                f"{section}.context_tokens: a context of {tokens} tokens does not fit in rollout.cache_tokens "
                f"({recipe.rollout.cache_tokens}); lower {section}.context_tokens, or raise rollout.cache_tokens"
            )
    if contexts and recipe.policy.needs_weights:
        from aster.engines.local.loading import context_in, require_context, resolve

        longest = context_in(resolve(recipe.model.path))
        for section, tokens in contexts.items():
            require_context(longest, tokens, f"{section}.context_tokens")


def check_doors(recipe: Recipe, stages: list[str]) -> None:
    """UserError if an environment, tool, algorithm or engine that the recipe names cannot be loaded."""
    from aster.environments.opening import make_environment

    if set(stages) - {"report"}:
        make_environment(recipe.environment, recipe.tools, recipe.sandbox)
    if "rl" in stages:
        from aster.rl import open_algorithm

        open_algorithm(recipe.rl)
    if ":" in recipe.policy.kind:
        from aster.doors import load

        load(recipe.policy.kind, {}, "policy.kind")


def refuse_training(recipe: Recipe, stages: list[str]) -> None:
    """Raise UserError where a stage would train an endpoint, or evaluate a checkpoint that the endpoint does not serve."""
    trained = [name for name in ("sft", "rl") if name in stages]
    if trained:
        raise UserError(
            f"policy.sampler: the stage {trained[0]} trains, and an endpoint cannot be trained; use sampler=local or vllm, "
            "or run only the stages that sample (aster synthesize, aster evaluate)"
        )
    if "evaluate" in stages and recipe.evaluate.policies != ["base"]:
        raise UserError(
            "evaluate.policies: an endpoint serves one model; with policy.sampler=endpoint set evaluate.policies=[base]"
        )


def keep_tokenizer(recipe: Recipe, folder: RunFolder) -> None:
    """Copy the model's tokenizer into the run folder. It is needed to turn trajectories back into text."""
    path = folder.path / "tokenizer"
    if path.exists():
        return
    from aster.engines.local.loading import load_tokenizer, resolve

    tokenizer = load_tokenizer(resolve(recipe.model.path, weights=recipe.policy.needs_weights))
    with replacing(path) as partial:
        tokenizer.save_pretrained(partial)


def print_results(recipe: Recipe, folder: RunFolder) -> None:
    """Print to stdout: the results of this run and of the runs in ``beside``, and the path of the report."""
    from aster.report import render_table

    shown = [(cold_start_name(recipe.cold_start), folder.path), *Beside.folders(recipe, folder)]
    for name, path in shown:
        if (path / "summary.json").exists():
            print(f"\ncold start: {name}")
            print(render_table(read_json(path / "summary.json")))
    if (folder.path / "report.html").exists():
        print(f"\nreport: {folder.path / 'report.html'}")
    sys.stdout.flush()
