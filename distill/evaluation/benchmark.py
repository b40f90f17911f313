"""A benchmark: problems, prompt, sampling and grader."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import build, plain
from distill.data.thoughts import THINKING
from distill.data.trace import Example, Grader
from distill.errors import UserError, first_line, whole_number
from distill.generation.sampling import Sampling
from distill.losses.signals import plain_partial

_GRADERS = 4  # completions graded in parallel; most graders wait for a child process


@dataclass(frozen=True)
class Benchmark:
    """A set of problems with the prompt, sampling settings and grader.

    Attributes:
        name: name in reports and metrics.
        source: function of `path=` and `limit=` that returns the problems with their gold answers.
        grade: grades a completion without its thinking block; called from several threads.
        prompt: template with `{problem}`; wrapped in the chat template if the tokenizer has one.
        plain_prompt: template for models without a chat template; None: use `prompt`.
        system: system message. A model without a chat template reads it in the line before `prompt`, as a
            student is trained; with `plain_prompt` it does not.
        sampling: sampling settings; greedy by default.
        samples: completions per problem.
        votes: whether answers to a problem can be compared with each other, for majority voting.
        thinking: opening and closing mark of the thought, which is not graded; the default stands for all
            marks of `distill.data.thoughts`.
        path: local file to read instead of the Hugging Face hub.
        limit: use only the first `limit` problems.
        seed: sampling seed.
    """

    name: str
    source: Callable[..., list[Example]]
    grade: Grader
    prompt: str = "{problem}"
    plain_prompt: str | None = None
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1
    votes: bool = True
    thinking: Sequence[str] = THINKING
    path: str | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for key, least in (("samples", 1), ("limit", 1), ("seed", 0)):
            if key != "limit" or self.limit is not None:
                whole_number(f"benchmark.{key}", getattr(self, key), least=least)
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"benchmark.samples={self.samples}: greedy completions of a problem are all alike; set "
                f"benchmark.temperature=0.6 or samples=1 (benchmark {self.name})"
            )
        if not re.fullmatch(r"[\w-][\w.-]*", str(self.name)):
            raise ValueError(
                f"name={self.name!r} is not a valid benchmark name: it must also be a folder name"
            )
        for key in ("source", "grade"):
            if not callable(getattr(self, key)):
                raise ValueError(f"benchmark.{self.name}.{key}={getattr(self, key)!r} is no function")
        object.__setattr__(self, "grade", plain_partial(self.grade))
        for key in ("prompt", "plain_prompt"):
            value = getattr(self, key)
            if not (value is None and key == "plain_prompt") and "{problem}" not in str(value):
                raise ValueError(f"benchmark.{self.name}.{key}={value!r} has no {{problem}} in it")
        for key in ("system", "path"):
            value = getattr(self, key)
            if not (value is None or isinstance(value, str)):
                raise ValueError(f"benchmark.{key}={value!r} is no text (benchmark {self.name})")
        tags = self.thinking
        both = isinstance(tags, (list, tuple)) and len(tags) == 2
        if not both or not all(isinstance(tag, str) and tag for tag in tags):
            raise ValueError(f"benchmark.thinking={tags!r} must be two texts, such as <think> and </think>")

    def problems(self) -> list[Example]:
        """Load all problems; repeated ids are made unique."""
        try:
            problems = self.source(path=self.path, limit=self.limit)
        except ValueError as error:  # an invalid setting of the source
            raise UserError(f"benchmark {self.name}: {first_line(error)}") from error
        if not problems:
            raise UserError(f"benchmark {self.name} has no problem: check benchmark.path, benchmark.limit")
        repeated = {name for name, count in Counter(problem.id for problem in problems).items() if count > 1}
        return [
            replace(problem, id=f"{problem.id}@{number}") if problem.id in repeated else problem
            for number, problem in enumerate(problems)
        ]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings besides model and problem that determine a completion, as JSON values."""
        return {
            "prompt": self.prompt,
            "plain_prompt": self.plain_prompt,
            "system": self.system,
            "sampling": dict(vars(self.sampling)),
            "seed": self.seed,
        }


def benchmarks_of(cfg: DictConfig) -> list[Benchmark]:
    """Build the benchmarks of the config node `benchmark`.

    Every key with a `_target_` is a benchmark. The node's shared settings (`path`, `limit`, `samples`,
    `temperature`, …) override those of each benchmark unless they are null.

    Raises:
        UserError: a value is invalid; the message names its key.
    """
    nodes = {str(name): node for name, node in cfg.items() if OmegaConf.is_dict(node) and "_target_" in node}
    paths = _paths(cfg, list(nodes))
    found = []
    for name, node in nodes.items():
        benchmark: Benchmark = build(node, f"benchmark={name}")
        shared = {
            key: cfg.get(key) for key in ("limit", "samples", "seed", "system") if cfg.get(key) is not None
        }
        sampling = {
            key: cfg.get(key)
            for key in ("temperature", "top_p", "top_k", "max_new_tokens")
            if cfg.get(key) is not None
        }
        try:
            found.append(
                replace(
                    benchmark,
                    **shared,
                    sampling=replace(benchmark.sampling, **sampling),
                    path=paths.get(name, benchmark.path),
                    thinking=benchmark.thinking if cfg.get("thinking") is None else plain(cfg.thinking),
                )
            )
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
    return found


def _paths(cfg: DictConfig, names: Sequence[str]) -> dict[str, Any]:
    """Map benchmark names to local files; `benchmark.path` is one file or a mapping by name."""
    path: Any = plain(cfg.get("path"))
    if path is None:
        return {}
    if isinstance(path, dict):
        if unknown := [str(name) for name in path if name not in names]:
            raise UserError(
                f"benchmark.path.{unknown[0]}: this benchmark is not selected "
                f"(selected: {', '.join(names) or 'none'})"
            )
        return {str(name): file for name, file in path.items() if file is not None}
    if len(names) > 1:
        raise UserError(
            f"benchmark.path={path} is one file for {len(names)} benchmarks: name one of them, as in "
            f"benchmark.{names[0]}.path={path}"
        )
    return dict.fromkeys(names, path)
