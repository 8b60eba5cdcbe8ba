"""Write renderings.json: dialogues rendered with Qwen3's own chat template.

    python tests/chat/make_renderings.py qwen3.jinja

The template is that of Qwen/Qwen3-1.7B. The package ``trl`` (1.16.0) has a copy, ``trl/chat_templates/qwen3.jinja``. The
template is not part of this project; only its output is stored, for comparison.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from aster.chat.qwen3 import TOOL_SCHEMA

RENDERINGS = Path(__file__).parent / "renderings.json"

# Turns are [thinking, content, calls], and calls are [code, output].
DIALOGUES: list[dict[str, Any]] = [
    {"prompt": "What is 1+1?", "tools": True, "turns": []},
    {"prompt": "What is 1+1?", "tools": False, "turns": [["Two.", "\\boxed{2}", []]]},
    {"prompt": "What is 1+1?", "system": "Be brief.", "tools": True, "turns": [["", "\\boxed{2}", []]]},
    {
        "prompt": "Sum of the primes below 100?",
        "tools": True,
        "turns": [
            ["Let the tool do it.", "", [["import sympy\nsum(sympy.primerange(100))", "1060"]]],
            ["It says 1060.", "The sum is \\boxed{1060}.", []],
        ],
    },
    {
        "prompt": "Two at once.",
        "tools": True,
        "turns": [
            ["First one,\n\nthen another.", "I call twice.", [["a = 1", "[no output]"], ["a + 1", "2"]]],
            ["Again.", "", [["print('a\\tb', \"c\")", "a\tb c"], ["x", "NameError: name 'x' is not defined"]]],
            ["Done.", "\\boxed{2}", []],
        ],
    },
    {
        "prompt": "Größe von 𝕏? <b>& 'x' \"y\"</b>",
        "system": "Antworte kurz.\nAuf Deutsch.",
        "tools": True,
        "turns": [
            ["Größe – ∑ 🎲", "Größe:", [["s = 'ü𝕏🎲'\nlen(s), '<&>'", "(3, '<&>')"]]],
            ["Fertig.", "Es sind \\boxed{3}.", []],
        ],
    },
    {
        "prompt": "  spaces around  ",
        "tools": True,
        "turns": [["x", "", [["", ""]]], ["y", "", [["for i in range(3):\n    print(i)\n", "0\n1\n2\n"]]], ["z", "end", []]],
    },
    {
        "prompt": "A dialogue that ends in a tool's result.",
        "tools": True,
        "turns": [["One step.", "", [["v=3*4\nv", "12"]]], ["Next step.", "", [["v=v+1\nv", "13"]]]],
    },
]


def messages_of(dialogue: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a dialogue as chat messages."""
    messages = [{"role": "system", "content": dialogue["system"]}] if dialogue.get("system") else []
    messages.append({"role": "user", "content": dialogue["prompt"]})
    for thinking, content, calls in dialogue["turns"]:
        message: dict[str, Any] = {"role": "assistant", "reasoning_content": thinking, "content": content}
        if calls:
            message["tool_calls"] = [{"function": {"name": "python", "arguments": {"code": code}}} for code, _ in calls]
        messages.append(message)
        messages += [{"role": "tool", "content": output} for _, output in calls]
    return messages


def main(template_path: str) -> None:
    """Render every dialogue."""
    # The environment that transformers uses for chat templates.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(Path(template_path).read_text(encoding="utf-8"))
    records = []
    for dialogue in DIALOGUES:
        going_on = not dialogue["turns"] or bool(dialogue["turns"][-1][2])
        text = template.render(
            messages=messages_of(dialogue),
            tools=[TOOL_SCHEMA] if dialogue["tools"] else None,
            add_generation_prompt=going_on,
        )
        records.append({"dialogue": dialogue, "text": text})
    RENDERINGS.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
