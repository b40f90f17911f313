"""A benchmark: problems, prompt, sampling and grader."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.benchmarks.grading import answers
from distill.config.instantiate import build, plain
from distill.data.trace import Example, Grader
from distill.errors import UserError, first_line, whole_number
from distill.generation.sampling import Sampling

_GRADERS = 4  # completions that are judged at once; most graders wait for a child process


@dataclass(frozen=True)
class Benchmark:
    """A set of problems, how they are asked, and how an answer is judged.

    Attributes:
        name: in reports and metrics.
        source: gives the problems, of `path=` and `limit=`; each has its gold answer.
        grade: judges a completion without its thinking part; called from several threads.
        prompt: template with `{problem}`; put through the chat template where the tokenizer has one.
        plain_prompt: the same for models without a chat template; None: as `prompt`.
        system: what the conversation begins with, for models with a chat template.
        sampling: how answers are drawn; greedy by default.
        samples: completions a problem.
        votes: whether samples of a problem can be counted by their answers.
        thinking: what opens and closes a part that is not judged.
        path: local file in place of the hub.
        limit: only the first so many problems.
        seed: of the draw.
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
    thinking: Sequence[str] = answers.THINKING
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
            raise ValueError(f"name={self.name!r} is no name of a benchmark: it is a folder's, too")
        for key in ("source", "grade"):
            if not callable(getattr(self, key)):
                raise ValueError(f"benchmark.{self.name}.{key}={getattr(self, key)!r} is no function")
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
        """All problems, each with an id of its own."""
        try:
            problems = self.source(path=self.path, limit=self.limit)
        except ValueError as error:  # a setting of its source
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
        """What a completion depends on beside the model and the problem, JSON values."""
        return {
            "prompt": self.prompt,
            "plain_prompt": self.plain_prompt,
            "system": self.system,
            "sampling": dict(vars(self.sampling)),
            "seed": self.seed,
        }


def benchmarks_of(cfg: DictConfig) -> list[Benchmark]:
    """The benchmarks of the config node `benchmark`: one a key that has a `_target_`, each with the node's
    own settings (`path`, `limit`, `samples`, `temperature`, …) where these are not null.

    Raises:
        UserError: a value that makes no sense; names its key.
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
    """`benchmark.path`: one file where one benchmark is asked, else a file by a benchmark's name."""
    path: Any = plain(cfg.get("path"))
    if path is None:
        return {}
    if isinstance(path, dict):
        if unknown := [str(name) for name in path if name not in names]:
            raise UserError(
                f"benchmark.path.{unknown[0]}: no such benchmark is asked "
                f"(asked: {', '.join(names) or 'none'})"
            )
        return {str(name): file for name, file in path.items() if file is not None}
    if len(names) > 1:
        raise UserError(
            f"benchmark.path={path} is one file for {len(names)} benchmarks: say whose, as in "
            f"benchmark.{names[0]}.path={path}"
        )
    return dict.fromkeys(names, path)
