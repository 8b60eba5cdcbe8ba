"""Turns the arguments of ``aster evaluate --policy`` into settings, problems and a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aster.config.file import apply_override, validate_recipe
from aster.config.recipe import Recipe
from aster.data.benchmarks import REGISTRY, checksum
from aster.errors import UserError
from aster.evaluation.run import LAB, Request, read_problems
from aster.evaluation.settings import Settings, parse_shard, parse_tokens, policy_kind
from aster.money import Prices
from aster.terminal import say
from aster.types import Problem

SECTIONS = ("model", "policy", "environment", "tools", "sandbox", "rollout")
"""The sections that FIELD=VALUE may change. The other settings have options."""


def make_request(
    overrides: tuple[str, ...], given: dict[str, Any], prices: Prices | None
) -> tuple[Settings, list[Problem], Request]:
    """Settings, problems and folder of ``aster evaluate --policy``. ``given``: its options by name. Raises UserError."""
    kind, _ = policy_kind(given["policy"])
    context = parse_tokens(given["budget"])
    recipe = _sections(overrides, given["policy"] if kind == "local" else None, given["concurrency"], context)
    suffix = given["prompt_suffix"]
    settings: dict[str, Any] = {
        "policy": given["policy"],
        "model_name": given["model_name"],
        "tokenizer": given["tokenizer"],
        "checkpoint": given["checkpoint"],
        "benchmark": given["benchmark"],
        "k": given["k"],
        "temperature": given["temperature"],
        "top_p": given["top_p"],
        "context_tokens": context,
        "turn_tokens": parse_tokens(given["turn_budget"]) if given["turn_budget"] else 0,
        "tool_calls": 0 if given["no_tools"] else given["max_calls"],
        "wall_seconds": given["wall_seconds"],
        "tools": not given["no_tools"],
        "seed": given["seed"],
        "shard": given["shard"],
        "model": recipe.model,
        "engine": recipe.policy,
        "environment": recipe.environment,
        "toolset": recipe.tools,
        "sandbox": recipe.sandbox,
    }
    parse_shard(given["shard"])
    if kind == "chat" and given["check_budget"]:
        raise UserError(
            f"--check-budget: {given['policy']} gives only text: without numbers of tokens there is no curve to check"
        )
    if suffix is not None:
        settings["prompt_suffix"] = suffix
    elif given["benchmark"] == LAB:
        settings["prompt_suffix"] = ""
    wanted = settings.get("prompt_suffix", Settings.model_fields["prompt_suffix"].default)
    problems = read_problems(
        given["benchmark"], given["data"], given["problems"], given["seed"], wanted, changed=given["changed_benchmark"]
    )
    try:
        found = Settings(**settings, problems=len(problems), checksum=checksum(problems))
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0]).replace("_", "-")
        raise UserError(f"--{name} {fault['input']}: {fault['msg']}") from None
    entry = REGISTRY.get(given["benchmark"])
    if entry is not None and entry.checksum is None:
        say(f"{entry.name}: no checksum is recorded for it; the checksum of these problems is {found.checksum}")
    folder = given["out"] or _default_folder(found)
    request = Request(folder, recipe.rollout, given["label"], prices, given["retry_faults"])
    return found, problems, request


def _sections(overrides: tuple[str, ...], path: str | None, concurrency: int, context: int) -> Recipe:
    """The recipe's sections with the overrides. Raises UserError for fields of other sections."""
    data: dict[str, Any] = {}
    for text in overrides:
        section = text.partition("=")[0].split(".")[0]
        if section not in SECTIONS:
            raise UserError(
                f"override {text!r}: with --policy, only fields of {', '.join(SECTIONS)} can be changed; other settings have "
                "options (aster evaluate --help)"
            )
        apply_override(data, text)
    if path is not None:
        data.setdefault("model", {})["path"] = path
    # The lab's model is slower with two threads.
    if path == "lab":
        data["model"].setdefault("threads", 1)
    rollout = data.setdefault("rollout", {})
    rollout.setdefault("slots", concurrency)
    # The cache must hold at least one context of this budget.
    rollout.setdefault("cache_tokens", max(context, Recipe().rollout.cache_tokens))
    return validate_recipe(data, "overrides")


def _default_folder(settings: Settings) -> Path:
    """``runs/evaluate/BENCHMARK-POLICY-BUDGET``, with a suffix for shards and for evaluations without tools."""
    policy = re.sub(r"[^A-Za-z0-9._-]+", "-", settings.policy.rstrip("/").split("//")[-1]).strip("-.")[-60:]
    parts = [Path(settings.benchmark).stem, policy or "policy", str(settings.context_tokens)]
    if not settings.tools:
        parts.append("no-tools")
    if settings.shard != "1/1":
        parts.append("shard-" + settings.shard.replace("/", "-of-"))
    return Path("runs") / "evaluate" / "-".join(parts)
