"""Answers to ``pip``, ``conda`` and ``uv`` commands in cells: nothing can be installed, because there is no network."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from importlib import metadata
from typing import NamedTuple

_REDIRECTION = re.compile(r"(?<!\S)(?:\d*|&)>{1,2}\s*(?:&\d|\S+)")
_WORDS = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s;|&"'])+|&&|\|\||[;|&]""")
_BETWEEN = ("&&", "||", ";", "|", "&")
_TOOL = re.compile(
    r"(?:sudo\s+)?(?:(?:\S*/)?python[\d.]*\s+-m\s+pip|uv(?:\s+pip)?|(?:\S*/)?pip[\d.]*|conda|mamba|micromamba)(?=\s|$)\s*"
)
_INSTALLING = {"install", "add", "download", "update", "upgrade"}
_WITH_VALUE = re.compile(
    r"-[rcifntpe]|--(requirement|constraint|channel|index-url|extra-index-url|find-links|target|name|prefix|python|proxy|timeout|"
    r"trusted-host|root|platform|progress-bar|log|cache-dir|editable)"
)
"""Options whose value is the next word."""
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*(?:[<>=!~;@].*)?$", re.DOTALL)
LONGEST_SUMMARY = 200


class Answer(NamedTuple):
    """The answer to a command."""

    text: str
    rest: str = ""
    """The rest of the command line, for a shell to run."""
    complete: bool = True
    """Whether everything that the command asked for is there."""


def answer(command: str) -> Answer | None:
    """The answer to a command line that begins with ``pip``, ``conda`` or ``uv``; None if a shell should run it."""
    tool = _TOOL.match(command.strip())
    if tool is None:
        return None
    command = command.strip()[tool.end() :]
    end, operator = len(command), ""
    for word in _WORDS.finditer(_REDIRECTION.sub(lambda found: " " * len(found[0]), command)):
        if word[0] in _BETWEEN:
            end, operator = word.start(), word[0]
            break
    words = [word.strip("\"'") for word in _words(_REDIRECTION.sub(" ", command[:end]))]
    options, names = _sorted(words[1:])
    answered = _answer_to(words[0] if words else "", names, "--format=freeze" in options)
    if answered is None:
        return None
    text, complete = answered
    if operator == "|":  # the command that reads the text runs in a shell
        return Answer("", f"printf '%s\\n' {shlex.quote(text)} | {command[end + 1 :]}", complete)
    goes_on = operator == ";" or (operator == "&&" and complete) or (operator == "||" and not complete)
    return Answer(text, command[end + len(operator) :].strip() if goes_on else "", complete)


def _words(text: str) -> list[str]:
    return [word[0] for word in _WORDS.finditer(text)]


def _sorted(words: list[str]) -> tuple[set[str], list[str]]:
    """Split the words of a command into options and names."""
    options, names = set(), []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("-"):
            options.add(word)
            skip = _WITH_VALUE.fullmatch(word) is not None
        elif not word.startswith("#"):
            names.append(word)
        else:
            break
    return options, names


def _answer_to(action: str, names: list[str], plainly: bool) -> tuple[str, bool] | None:
    if action in _INSTALLING:
        return _installing(names)
    if action in ("uninstall", "remove"):
        return "[nothing can be removed here]", False
    if action == "freeze" or (action == "list" and plainly):
        return "\n".join(f"{name}=={version}" for name, version in _installed()), True
    if action == "list":
        rows = [("Package", "Version"), *_installed()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}} {version}" for name, version in [rows[0], ("-" * width, "-" * 7), *rows[1:]]), True
    if action == "show":
        return _show(names)
    return None


def _installing(names: list[str]) -> tuple[str, bool]:
    here, missing = [], []
    for name in names:
        found = _find(name)
        if found is None:
            missing.append(name)
        else:
            here.append(found)
    parts = ["nothing can be installed, because there is no network"]
    if here:
        parts.append(f"already here: {', '.join(here)}")
    if missing:
        parts.append(f"not here: {', '.join(missing)}")
    if not names:
        parts.append("!pip list shows what is here")
    return f"[{'; '.join(parts)}]", bool(names) and not missing


def _find(requirement: str) -> str | None:
    """An installed package, with its version and how it is imported; None if it is not installed."""
    parsed = _REQUIREMENT.match(requirement)
    if parsed is None:
        return None
    name = parsed[1]
    module = name.replace("-", "_")
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        if module in sys.stdlib_module_names:
            return f"{name} (a part of Python)"
        return f"{name} (import {module})" if _can_be_imported(module) else None
    modules = [] if _can_be_imported(module) else _modules(distribution)
    return f"{name} {distribution.version}" + (f" (import {', '.join(modules)})" if modules else "")


def _can_be_imported(module: str) -> bool:
    try:
        return module.isidentifier() and importlib.util.find_spec(module) is not None
    except ValueError:  # a cell has put a module without a spec into sys.modules
        return True


def _modules(distribution: metadata.Distribution) -> list[str]:
    """The names under which a distribution is imported, if its metadata names them."""
    listed = (distribution.read_text("top_level.txt") or "").split()
    if not listed:
        files = [file.parts for file in distribution.files or () if file.suffix == ".py"]
        listed = sorted({parts[0].removesuffix(".py") for parts in files})
    return [name for name in listed if name.isidentifier() and not name.startswith("_")][:3]


def _installed() -> list[tuple[str, str]]:
    found = {str(each.metadata["Name"]): each.version for each in metadata.distributions() if each.metadata["Name"]}
    return sorted(found.items(), key=lambda item: item[0].lower())


def _show(names: list[str]) -> tuple[str, bool]:
    parts, complete = [], True
    for name in names:
        try:
            distribution = metadata.distribution(name)
        except (metadata.PackageNotFoundError, ValueError):
            parts.append(f"[not here: {name}]")
            complete = False
            continue
        facts = {
            "Name": distribution.metadata["Name"],
            "Version": distribution.version,
            "Summary": (distribution.metadata["Summary"] or "")[:LONGEST_SUMMARY],
            "Requires": ", ".join(
                re.split(r"[\s<>=!~;(\[]", each)[0] for each in distribution.requires or () if "extra ==" not in each
            ),
        }
        parts.append("\n".join(f"{field}: {value}" for field, value in facts.items()))
    return "\n---\n".join(parts), complete
