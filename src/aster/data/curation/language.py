"""Decide whether a problem is in English.

Only the prose outside formulas is classified. Short or mathematical prose misleads a classifier: one word is left of
``Evaluate $\\int x dx$``. A problem therefore counts as English unless there is evidence for another language.
"""

from __future__ import annotations

import functools
from typing import Any

from aster.data.curation.normalize import GREEK, LATIN, prose

FOREIGN_LETTERS = 0.2
"""Share of non-Latin letters above which a text is not English. Greek letters do not count: they may be mathematics."""
FEWEST_WORDS = 3
"""Texts with fewer words are not classified and count as English."""
SURE = 0.4
"""Probability of another language from which a text is not English. It is low because the classifier spreads the probability
over many languages on short texts."""


def is_english(prompt: str) -> bool:
    """Return False only if there is evidence that the prompt is in another language."""
    text = prose(prompt)
    letters = [character for character in text if character.isalpha()]
    foreign = sum(ord(letter) > LATIN and ord(letter) not in GREEK for letter in letters)
    if foreign > FOREIGN_LETTERS * len(letters):
        return False
    if len(text.split()) < FEWEST_WORDS:
        return True
    language, probability = _identifier().classify(text)
    return bool(language in ("en", "zxx") or probability < SURE)  # zxx: no linguistic content


@functools.lru_cache(maxsize=1)
def _identifier() -> Any:
    # Loading its model takes a second.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
