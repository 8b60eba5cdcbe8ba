"""Problems of your own from a data frame.

    aster run my.yaml problems.train=examples/own_data.py:train problems.evaluate=examples/own_data.py:held_out

The name stands for a function, a list or a data frame (pandas or polars). Columns go by the names that the field uses
(``prompt`` or ``problem``, ``answer``, ``id``); ``problems.columns`` names others."""

import random

import pandas


def frame(seed: int, rows: int) -> pandas.DataFrame:
    rng = random.Random(seed)
    pairs = [(rng.randint(10, 99), rng.randint(10, 99)) for _ in range(rows)]
    return pandas.DataFrame(
        {
            "id": [f"product-{a}-{b}" for a, b in pairs],
            "prompt": [f"What is {a} * {b}? Give the answer in \\boxed{{}}." for a, b in pairs],
            "answer": [a * b for a, b in pairs],
        }
    ).drop_duplicates("id")


def train() -> pandas.DataFrame:
    return frame(1, 200)


def held_out() -> pandas.DataFrame:
    seen = set(train()["id"])
    found = frame(2, 100)
    return found[~found["id"].isin(seen)]
