"""An environment that is not mathematics: answer a question with SQL, in a small database that Python's sqlite3 opens.

    aster run my.yaml environment=examples/own_environment.py:Sql problems.train=examples/own_environment.py:problems

The model explores ``shop.db`` with the Python tool and answers with a query in a box. The query is run, and its rows are
compared with those of a query that is known to be right: many different queries are right answers."""

import sqlite3
from dataclasses import dataclass

from aster.environments import Attempt, Environment, Score
from aster.grading import extract_boxed
from aster.types import Problem

TABLES = """
create table customers (id integer primary key, name text, city text);
create table orders (id integer primary key, customer integer, price integer);
insert into customers values (1, 'Ada', 'London'), (2, 'Emmy', 'Erlangen'), (3, 'Alan', 'London');
insert into orders values (1, 1, 30), (2, 1, 12), (3, 2, 50), (4, 3, 8);
"""
SETUP = f"import sqlite3\nwith sqlite3.connect('shop.db') as _db:\n    _db.executescript({TABLES!r})\ndel _db"
ASKED = [
    ("How many customers live in London?", "select count(*) from customers where city = 'London'"),
    (
        "Who has spent most?",
        "select name from customers join orders on customer = customers.id group by name order by sum(price) desc limit 1",
    ),
]
RULE = "The database shop.db is in the current folder. Explore it with Python's sqlite3, then give one SQL query in \\boxed{}."


def problems() -> list[Problem]:
    return [Problem(f"shop-{n}", question, query, "shop", SETUP) for n, (question, query) in enumerate(ASKED)]


@dataclass
class Sql(Environment):
    system: str = RULE

    async def score(self, attempt: Attempt) -> Score:
        query = extract_boxed(attempt.final or "")
        if query is None:
            return Score(0.0, "no query in a box")
        with sqlite3.connect(":memory:") as database:
            database.executescript(TABLES)
            try:
                rows = database.execute(query).fetchall()
            except sqlite3.Error as error:
                return Score(0.0, f"the query fails: {error}", query)
            expected = database.execute(attempt.problem.answer).fetchall()
        return Score(float(rows == expected), f"{len(rows)} rows, {len(expected)} expected", query)
