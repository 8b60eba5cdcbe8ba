"""Whether a problem is in English.

Formulas say nothing about a language, and short or mathematical prose misleads a classifier: of ``Evaluate $\\int x dx$`` one
word is left. So only the prose outside formulas counts, a problem is dropped where there is evidence for another language, and
one with too few words to tell is kept.
"""

from __future__ import annotations

import functools
from typing import Any

from aster.data.curation.normalize import GREEK, LATIN, prose

FOREIGN_LETTERS = 0.2
"""Share of letters of other scripts (Greek ones may be mathematics) from which a text is not English."""
FEWEST_WORDS = 3
SURE = 0.4
"""Probability of another language from which a text is not English. On short texts the classifier spreads it widely."""


def is_english(prompt: str) -> bool:
    """Whether nothing speaks against English."""
    text = prose(prompt)
    letters = [character for character in text if character.isalpha()]
    foreign = sum(ord(letter) > LATIN and ord(letter) not in GREEK for letter in letters)
    if foreign > FOREIGN_LETTERS * len(letters):
        return False
    if len(text.split()) < FEWEST_WORDS:
        return True
    language, probability = _identifier().classify(text)
    return bool(language in ("en", "zxx") or probability < SURE)  # zxx: no language at all


@functools.lru_cache(maxsize=1)
def _identifier() -> Any:
    # Reading its model takes a second.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
