from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.algorithms.prompts import choose_prompts, drop_solved
from tests.refusals import refused

sizes = st.integers(1, 30)


def ids(count: int) -> list[str]:
    return [f"problem-{number}" for number in range(count)]


def test_only_problems_solved_every_time_are_dropped() -> None:
    history = {
        "always": [1.0, 1, 1.0],
        "once_not": [1.0, 0.0, 1.0],
        "never": [0.0],
        "partly": [0.5, 1.0],
        "empty": [],
        "gone": [1.0],
    }
    names = ["once_not", "untried", "always", "never", "empty", "partly"]
    assert drop_solved(names, history) == ["once_not", "untried", "never", "empty", "partly"]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(max_size=3), st.lists(st.sampled_from([0.0, 1.0]), max_size=4)),
    st.lists(st.text(max_size=3), unique=True),
)
def test_solved_problems_are_joined_by_id(history: dict[str, list[float]], names: list[str]) -> None:
    kept = drop_solved(names, history)
    assert kept == [name for name in names if name in kept]
    for name in names:
        assert (name in kept) == (not history.get(name) or 0.0 in history[name])
    # The order in which the history was recorded is of no account.
    assert drop_solved(names, dict(reversed(history.items()))) == kept


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, st.integers(0, 12), st.integers(0, 2**40))
def test_a_step_has_its_number_of_different_problems(count: int, prompts: int, step: int, seed: int) -> None:
    chosen = choose_prompts(ids(count), step, prompts, seed)
    assert len(chosen) == prompts
    assert set(chosen) <= set(ids(count))
    if count >= prompts:
        assert len(set(chosen)) == prompts
    else:
        counts = Counter(chosen)
        assert max(counts[name] for name in ids(count)) - min(counts[name] for name in ids(count)) <= 2


@settings(max_examples=80, deadline=None)
@given(sizes, sizes, st.integers(1, 4), st.integers(0, 2**40))
def test_every_epoch_holds_every_problem_once(count: int, prompts: int, epochs: int, seed: int) -> None:
    steps = -(-count * epochs // prompts)
    stream = [name for step in range(steps) for name in choose_prompts(ids(count), step, prompts, seed)]
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == sorted(ids(count))


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    first, second = choose_prompts(ids(50), 0, 50, 1), choose_prompts(ids(50), 1, 50, 1)
    assert first != second
    assert first != choose_prompts(ids(50), 0, 50, 2)
    assert first != ids(50)


def test_a_resumed_run_draws_the_same_prompts_in_another_process() -> None:
    code = f"from aster.algorithms.prompts import choose_prompts; print(*choose_prompts({ids(20)}, 4, 7, 3))"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert fresh.stdout.split() == choose_prompts(ids(20), 4, 7, 3)


def test_what_cannot_be_drawn_from_is_refused() -> None:
    with refused("rl"):
        choose_prompts([], 0, 4, 1)
    with pytest.raises(ValueError, match="problem ids"):
        choose_prompts(["a", "a"], 0, 1, 1)
    with pytest.raises(ValueError, match="step -1"):
        choose_prompts(["a"], -1, 1, 1)


def test_prompts_and_advantages_need_no_torch() -> None:
    code = (
        "import sys, aster.algorithms, aster.algorithms.advantages, aster.algorithms.prompts; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
