"""A tool of your own beside Python: a search in a small local corpus.

    aster run my.yaml 'tools=[python, examples/own_tool.py:search]'

A function is a tool. Its name, docstring and annotations are what the model is told; what it returns is what the model sees.
Raise ToolError to tell the model that a call failed. A tool that keeps something between the calls of an attempt is a class:
see ``aster.environments.Tool``."""

import re

from aster.environments import ToolError

CORPUS = {
    "Mont Blanc": "Mont Blanc is the highest mountain of the Alps. Its summit is 4806 metres above the sea.",
    "Ben Nevis": "Ben Nevis is the highest mountain of Scotland. Its summit is 1345 metres above the sea.",
    "Snowdon": "Snowdon is the highest mountain of Wales. Its summit is 1085 metres above the sea.",
}
COMMON = {"the", "of", "is", "a", "how", "high", "mountain", "its"}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower())) - COMMON


def search(query: str, results: int = 1) -> str:
    """Search the encyclopedia of mountains. Gives the entries that fit a query best."""
    asked = words(query)
    if not asked:
        raise ToolError("the query has no words to search for; name a mountain or a country")
    found = sorted(CORPUS, key=lambda title: -len(asked & words(f"{title} {CORPUS[title]}")))
    fitting = [title for title in found if asked & words(f"{title} {CORPUS[title]}")]
    return "\n".join(CORPUS[title] for title in fitting[:results]) or "nothing found"
