"""``report.html`` of a run: one page with every stage that the run folder holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aster.config import cold_start_name
from aster.config.curation import WITHOUT_SFT
from aster.data.curation.chain import Funnel
from aster.evaluation.folder import EvaluationFolder
from aster.evaluation.published import BENCHMARKS, ROWS
from aster.report import charts
from aster.report.html import write_html
from aster.report.samples import Sample, pick, sample_view
from aster.report.table import POLICIES
from aster.rollout.attempts import Attempt
from aster.run import RunFolder, iterate_trajectories, read_json
from aster.telemetry import collapse_alarm, tool_use
from aster.telemetry.collapse import BASELINE_STEPS, SUSTAINED_STEPS
from aster.telemetry.metrics import METRICS
from aster.types import Trajectory

SAMPLES_PER_KIND = 3
"""Number of solved and of failed trajectories shown from the evaluation."""


@dataclass(frozen=True)
class Evaluated:
    """One policy's evaluation: its tool use and a few of its trajectories."""

    use: dict[str, Any]
    samples: list[Trajectory]


def write_page(run: RunFolder, others: Sequence[RunFolder] = ()) -> Path:
    """Write the report of ``run``, with the RL curves of ``others`` in its charts. See ``aster.report.write_report``."""
    evaluated = {policy: read for policy in POLICIES if (read := _evaluated(run, policy)) is not None}
    about = read_json(run.path / "run.json") if (run.path / "run.json").exists() else {}
    results = read_json(run.path / "summary.json") if (run.path / "summary.json").exists() else {}
    rl = run.metrics("rl")
    funnel = [Funnel(**step) for step in (run.summary("curate") or {}).get("funnel", [])]
    path = run.path / "report.html"
    write_html(
        path,
        "report",
        recipe=run.recipe,
        cold_start=cold_start_name(run.recipe["cold_start"]),
        has_sft=run.recipe["cold_start"] not in WITHOUT_SFT,
        about=about,
        results=[(POLICIES[policy], results[policy]) for policy in POLICIES if policy in results],
        evaluation_pages=[
            f"evaluate/{policy}/report.html" for policy in POLICIES if (run.path / "evaluate" / policy / "report.html").exists()
        ],
        published=ROWS,
        benchmarks=list(BENCHMARKS.values()),
        rl_charts=_rl_charts(run, rl, others),
        rl_steps=len(rl),
        verdict=_verdict([line["tool_calls"] for line in rl]),
        distribution=_distribution(evaluated),
        uses=[(POLICIES[policy], read.use) for policy, read in evaluated.items()],
        sft_chart=_sft_chart(run.metrics("sft")),
        funnel=funnel,
        funnel_chart=Markup(charts.funnel_chart("Trajectories left after each filter", funnel)) if funnel else None,
        samples=_samples(run, evaluated),
    )
    return path


def _evaluated(run: RunFolder, policy: str) -> Evaluated | None:
    """Read a policy's evaluation in one pass, because it may be large. None if the policy was not evaluated."""
    path = run.path / "evaluate" / policy
    former = path / "trajectories" / "all.jsonl.gz"  # of runs by earlier versions
    if (path / "evaluation.json").exists():
        attempts: Iterable[Attempt] = EvaluationFolder.load(path).latest()
    elif former.exists():
        attempts = iterate_trajectories(former)
    else:
        return None
    samples: list[Trajectory] = []
    tokens = (attempt for attempt in attempts if isinstance(attempt, Trajectory))
    return Evaluated(tool_use(pick(tokens, SAMPLES_PER_KIND, samples)), samples)


def _verdict(calls: list[float]) -> tuple[str, str]:
    """Return the collapse alarm's verdict as (CSS class, sentence)."""
    if len(calls) < BASELINE_STEPS + SUSTAINED_STEPS:
        return "missing", f"Too few RL steps for a verdict on interaction collapse: {len(calls)}."
    alarm = collapse_alarm(calls)
    if alarm:
        return "bad", f"Alarm: {alarm}."
    return "good", f"No interaction collapse in {len(calls)} steps."


def _rl_charts(run: RunFolder, lines: list[dict[str, Any]], others: Sequence[RunFolder]) -> list[Markup]:
    if not lines:
        return []
    runs = [(run.path.resolve().name, lines), *((other.path.resolve().name, other.metrics("rl")) for other in others)]
    drawn = []
    for key in ("reward", "tool_calls", "entropy", "tokens_per_trajectory"):
        title = METRICS[key].heading
        series = [_series(name, of_run, key) for name, of_run in runs]
        if any(x for _, x, _ in series):
            drawn.append(
                Markup(charts.line_chart(title, "RL step", [s for s in series if s[1]], _boundaries(lines), smoothed=True))
            )
    drawn += _stop_reason_chart(lines)
    return drawn


def _boundaries(lines: list[dict[str, Any]]) -> list[float]:
    """Return the steps between which one stage of the recipe's list ends and the next begins."""
    return [
        after["step"] - 0.5
        for before, after in itertools.pairwise(lines)
        if after.get("stage_index") != before.get("stage_index")
    ]


def _series(name: str, lines: Iterable[dict[str, Any]], key: str) -> charts.Series:
    kept = [line for line in lines if line.get(key) is not None]
    return name, [line["step"] for line in kept], [line[key] for line in kept]


def _stop_reason_chart(lines: list[dict[str, Any]]) -> list[Markup]:
    kept = [line for line in lines if line.get("stop_reasons")]
    if len(kept) < 2:  # an area needs two points
        return []
    names = sorted({name for line in kept for name in line["stop_reasons"]})
    shares = {
        name.replace("_", " "): [line["stop_reasons"].get(name, 0) / sum(line["stop_reasons"].values()) for line in kept]
        for name in names
    }
    return [Markup(charts.stacked_chart("Stop reasons (share)", "RL step", [line["step"] for line in kept], shares))]


def _sft_chart(lines: list[dict[str, Any]]) -> Markup | None:
    if not lines:
        return None
    name, x, y = _series("loss", lines, "loss")
    return Markup(charts.line_chart("SFT loss (nats per trained token)", "optimizer step", [(name, x, y)], _boundaries(lines)))


def _distribution(evaluated: dict[str, Evaluated]) -> Markup | None:
    groups = {POLICIES[policy]: read.use["calls_histogram"] for policy, read in evaluated.items()}
    if not groups:
        return None
    return Markup(charts.histogram_chart("Tool calls per trajectory (share of trajectories)", "tool calls", groups))


def _samples(run: RunFolder, evaluated: dict[str, Evaluated]) -> list[Sample]:
    """Return solved and failed trajectories of the evaluation after RL and of the last RL step."""
    found = [("evaluation after RL", trajectory) for trajectory in evaluated["rl"].samples] if "rl" in evaluated else []
    steps = sorted(run.trajectory_file("rl", "any").parent.glob("step_*.jsonl.gz"))
    if steps:
        last: list[Trajectory] = []
        for _ in pick(iterate_trajectories(steps[-1]), 1, last):
            pass
        found += [(f"RL {steps[-1].name.removesuffix('.jsonl.gz').replace('_', ' ')}", trajectory) for trajectory in last]
    problems = run.problems()
    return [sample_view(run, source, trajectory, problems.get(trajectory.problem_id, {})) for source, trajectory in found]
