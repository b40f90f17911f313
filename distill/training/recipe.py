"""Recipe for traces: read problems, get completions from the data or the teacher, filter, tokenize."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.benchmarks.grading.graded import graded
from distill.data.on_disk import Examples, spool_examples
from distill.data.prompt import Prompt
from distill.data.seam import encode_turn, rejoin, written_text
from distill.data.tokenizers import template_of, template_variables
from distill.data.trace import Example, Grader, Trace, check_spelling, completion_of
from distill.data.trace_set import problem_of_example
from distill.data.traces import Ids, Traces, spool_traces
from distill.errors import UserError
from distill.generation.sampling import Sampling
from distill.io.cache import cached_arrays
from distill.io.sequences import Lazy, take
from distill.losses.signals import plain_partial
from distill.models.language_model import LanguageModel, ModelSource, vocabulary_mismatch
from distill.models.lazy import LazyModel
from distill.teacher.completions import check_room, sample_completions, writer_key
from distill.teacher.retokenize import Retokenizer
from distill.training.written_once import comparable, made_once

_CODE = (  # modules that make tokens of an example
    *(
        f"distill.data.{name}"
        for name in ("conversations", "prompt", "seam", "thoughts", "tokenizers", "trace")
    ),
    __name__,
)


@dataclass
class TraceRecipe:
    """How a set of problems becomes a set of traces.

    Attributes:
        source: reads the examples.
        keep: for trace sets: `right` drops traces that are graded wrong or unfinished, and reports how many;
            `all` keeps them.
        student_prompt: the prompt that the student is trained on; the tokenizer's chat template, if any, is
            applied to it.
        teacher_prompt: the prompt that the teacher writes and is scored under (the instruction c of
            2605.14071), None: the student's.
        informed_prompt: user template for a teacher that sees the worked solution (`loss.teacher_sees=
            solution`), with `{problem}` and `{solution}`.
        other_prompt: a trace set that the teacher wrote under another prompt than `teacher_prompt`: `error`
            refuses it, `rescore` computes the teacher's log-probs under `teacher_prompt`.
        completions: `dataset`: the data's own; `teacher`: sampled from the teacher.
        grade: grades sampled completions; only correct ones become traces. None: all do.
        sampling: how the teacher samples.
        samples: completions that the teacher writes per problem.
        sampling_batch_size: problems per batch when the teacher writes.
        max_length: longest trace in tokens, prompt included; None: the model's context.
        overlong: `error` raises for a longer trace; `drop` leaves it out and reports how many.
        seed: of the teacher's sampling.
    """

    source: Callable[[], Sequence[Example]]
    student_prompt: Prompt = field(default_factory=Prompt)
    teacher_prompt: Prompt | None = None
    informed_prompt: str = "{solution}\n\n{problem}"
    other_prompt: Literal["error", "rescore"] = "error"
    completions: Literal["dataset", "teacher"] = "dataset"
    grade: Grader | None = None
    sampling: Sampling | None = None
    samples: int = 1
    sampling_batch_size: int = 64
    max_length: int | None = None
    overlong: Literal["error", "drop"] = "error"
    seed: int = 0
    keep: Literal["right", "all"] = "right"

    def __post_init__(self) -> None:
        if self.grade is not None:
            self.grade = plain_partial(self.grade)
        if self.completions not in ("dataset", "teacher"):
            raise ValueError(f"data.completions={self.completions!r} is not one of dataset, teacher")
        if self.overlong not in ("error", "drop"):
            raise ValueError(f"data.overlong={self.overlong!r} is not one of error, drop")
        if self.keep not in ("right", "all"):
            raise ValueError(f"data.keep={self.keep!r} is not one of right, all")
        if self.other_prompt not in ("error", "rescore"):
            raise ValueError(f"data.other_prompt={self.other_prompt!r} is not one of error, rescore")
        if "{solution}" not in self.informed_prompt or "{problem}" not in self.informed_prompt:
            raise ValueError(
                f"data.informed_prompt={self.informed_prompt!r} needs {{problem}} and {{solution}} in it"
            )

    def prompt_for_teacher(self, sees: Literal["prompt", "solution"] = "prompt") -> Prompt:
        """The prompt that the teacher is scored under.

        Args:
            sees: `loss.teacher_sees`; with `solution`, `informed_prompt` is the user's message unless
                `teacher_prompt` itself shows the solution.

        Raises:
            UserError: `teacher_prompt` has a user's message without `{solution}`.
        """
        prompt = self.teacher_prompt or self.student_prompt
        if sees == "prompt" or prompt.shows_solution:
            return prompt
        if self.teacher_prompt and prompt.user != self.student_prompt.user:
            raise UserError(
                f"loss.teacher_sees=solution, but data.teacher_prompt.user={prompt.user!r} has no "
                f"{{solution}} in it: put it in, or take loss.teacher_sees=prompt"
            )
        return replace(prompt, user=self.informed_prompt)

    def retokenizer(
        self, student: ModelSource, teacher: ModelSource, sees: Literal["prompt", "solution"] = "prompt"
    ) -> Retokenizer:
        """Makes the teacher's view of traces, under `prompt_for_teacher`."""
        return Retokenizer(student, teacher, self.prompt_for_teacher(sees), self.teacher_prompt is not None)

    def build(
        self,
        student: LanguageModel,
        teacher: LazyModel | None,
        cache: Path,
        say: Callable[[str], None] = print,
        prompts_only: bool = False,
    ) -> Traces:
        """Make the traces, in the order of the data. They are tokenized once, and read from the cache.

        Args:
            student: model whose tokenizer is used.
            teacher: writes the completions if `completions=teacher`.
            cache: folder of all caches.
            say: reports how many traces were kept and left out.
            prompts_only: completions are not needed, because the student writes them during training. A
                trace's completion is then a single end token.

        Raises:
            UserError: there are no traces, or one cannot be trained on; names which.
        """
        examples = spool_examples(self.source, cache)
        if not examples:
            raise UserError("the data holds no problem: check data.path, data.limit")
        check_spelling(student.tokenizer, examples[0], student.source.name)
        if self.completions == "teacher" and not prompts_only:
            traces = Traces.of(self._sampled_once(examples, student, teacher, cache, say))
        else:
            kept = examples if prompts_only else self._without_wrong(examples, say)
            key = {"examples": examples.fingerprint, "keep": self.keep}
            traces = self.tokenized(kept, student.source, cache, key, prompts_only)
            _say_thoughts(traces, student, say)
        contexts = {student.source.name: student.context_length}
        if teacher is not None and vocabulary_mismatch(student.source, teacher.source) is None:
            contexts[teacher.source.name] = teacher.source.context_length  # it may score the same tokens
        return self._fitting(traces, student, contexts, say)

    def _without_wrong(self, examples: Sequence[Example], say: Callable[[str], None]) -> Sequence[Example]:
        """Drop traces of a trace set that are graded wrong or unfinished, unless `keep=all`."""
        if self.keep == "all":
            return examples
        usable = [
            e.recorded is None or (e.recorded.finished and e.recorded.correct is not False) for e in examples
        ]
        kept = take(examples, np.flatnonzero(usable))
        if len(kept) < len(examples):
            say(
                f"trace set: {len(kept)} of {len(examples)} traces kept, the others are wrong or have no end "
                f"(data.keep=all takes them too)"
            )
        if not kept:
            raise UserError(
                f"none of the {len(examples)} traces is right and finished: write others, or take "
                f"data.keep=all"
            )
        return kept

    def tokenize(self, examples: Sequence[Example], student: ModelSource) -> list[Trace]:
        """Tokenize the examples' completions for the student.

        A trace set's recorded token ids are used as they are if its tokenizer is the student's.

        Raises:
            UserError: an example has no completion, or a prompt without a token; names it.
        """
        traces = [self._from_dataset(example, student, student.vocabulary) for example in examples]
        for trace in traces:
            _check_prompt(trace)
        return traces

    def tokenized(
        self,
        examples: Sequence[Example],
        student: ModelSource,
        folder: Path,
        key: Mapping[str, Any] | None = None,
        prompts_only: bool = False,
    ) -> Traces:
        """As `tokenize`; the tokens are in a file, and a trace is made when it is asked for.

        Args:
            examples: that are to be traces.
            student: model whose tokenizer is used.
            folder: where the file is; with a key, the folder of all caches, if it can be written to.
            key: what tells the examples from others: the tokens are cached under it. None: they are gone with
                the process.
            prompts_only: as for `build`.
        """
        vocabulary, end = student.vocabulary, np.asarray(student.end_ids[:1], dtype=np.int32)

        def encode(place: int) -> Ids:
            if prompts_only:
                return self.student_prompt.encode(student.tokenizer, examples[place]), end
            trace = self._from_dataset(examples[place], student, vocabulary)
            _check_prompt(trace)
            return trace.prompt_ids, trace.completion_ids

        def make(place: int, ids: Ids) -> Trace:
            example = examples[place]
            weight = 1.0 if prompts_only or example.recorded is None else example.recorded.weight
            return Trace(example, *ids, weight=weight)

        if key is None or (folder.is_dir() and not os.access(folder, os.W_OK)):
            return spool_traces(map(encode, range(len(examples))), make, folder)
        key = {
            **key,
            **_tokenizing(student),
            "prompt": asdict(self.student_prompt),
            "prompts_only": prompts_only,
        }
        stored = cached_arrays(folder, "tokens", key, len(examples), encode, label="tokenizing traces")
        ids = Lazy(len(stored), lambda place: (stored[place][0], stored[place][1]))
        return Traces(ids, lambda place: make(place, ids[place]))

    def _from_dataset(self, example: Example, student: ModelSource, vocabulary: str) -> Trace:
        completion, recorded = completion_of(example), example.recorded
        if recorded is None:
            return self._from_text(example, completion, student)
        if recorded.tokenizer != vocabulary or len(recorded.completion_ids) == 0:
            if recorded.learn_from:
                raise UserError(
                    f"trace {example.place} is learned from its token {recorded.learn_from} on, of another "
                    f"tokenizer than {student.name}'s: write it with a model of the student's family"
                )
            return replace(self._from_text(example, completion, student), weight=recorded.weight)
        prompt_ids = self.student_prompt.encode(student.tokenizer, example)
        if recorded.finished and recorded.completion_ids[-1] not in student.end_ids:
            ids = np.append(recorded.completion_ids[:-1], student.end_ids[0]).astype(np.int32)
        else:
            ids = recorded.completion_ids
        count = len(ids) - recorded.learn_from
        prompt_ids, ids = rejoin(student.tokenizer, prompt_ids, recorded.prompt_ids, ids)
        if recorded.learn_from:  # tokens before `learn_from` are context only: they go to the prompt
            prompt_ids, ids = np.concatenate([prompt_ids, ids[:-count]]), ids[-count:]
        return Trace(example, prompt_ids, ids, weight=recorded.weight)

    def _from_text(self, example: Example, text: str, student: ModelSource) -> Trace:
        """A trace of a completion that is known as text only."""
        messages, ends = self.student_prompt.messages(example), student.end_ids
        said = {"place": example.place, "tools": example.tools}
        return Trace(example, *encode_turn(student.tokenizer, messages, text, ends, **said))

    def _sampled_once(
        self,
        examples: Examples,
        student: LanguageModel,
        teacher: LazyModel | None,
        cache: Path,
        say: Callable[[str], None],
    ) -> Sequence[Trace]:
        if teacher is None:
            raise UserError("data.completions=teacher, but there is no teacher: set model.teacher=<model>")
        models = [
            (writer_key(source), source.end_ids, source.context_length, source.rows)
            for source in (student.source, teacher.source)
        ]
        fields = {name: value for name, value in vars(self).items() if name != "source"}
        key = (examples.fingerprint, models, cache, fields | {"grade": comparable(self.grade)})
        return made_once(
            key, lambda say: self._sampled(list(examples), student, teacher, cache, say), teacher, say
        )

    def _sampled(
        self,
        examples: Sequence[Example],
        student: LanguageModel,
        teacher: LazyModel,
        cache: Path,
        say: Callable[[str], None],
    ) -> list[Trace]:
        # The same prompts as for scoring, so that the teacher's log-probs are for what it sampled under.
        retokenizer = self.retokenizer(student.source, teacher.source)
        end_ids = teacher.source.end_ids
        prompts, completions = self._answers(examples, retokenizer, teacher, cache, "teacher writes traces")
        traces, outcomes = [], Counter[str]()
        for example, prompt, written in zip(examples, prompts, completions, strict=True):
            prompt_ids = self.student_prompt.encode(student.tokenizer, example)
            for number, ids in enumerate(written):
                if len(ids) == 0 or ids[-1] not in end_ids:
                    outcomes["unfinished"] += 1
                    continue
                text = written_text(retokenizer.tokenizer, prompt, ids)
                if self.grade is not None and not graded(self.grade, example, text).correct:
                    outcomes["wrong"] += 1
                    continue
                outcomes["kept"] += 1
                # The example keeps the data's completion: the solution that an informed teacher sees.
                kept = replace(example, id=f"{example.id}#{number}") if self.samples > 1 else example
                if retokenizer.foreign:
                    traces.append(self._from_text(kept, text, student.source))
                    continue
                if ids[-1] not in student.end_ids:
                    ids = np.append(ids[:-1], student.end_ids[0])
                ids = ids.astype(np.int32)
                traces.append(Trace(kept, *rejoin(student.tokenizer, prompt_ids, prompt, ids)))
        say(
            f"teacher traces: {len(examples) * self.samples} written, {outcomes['kept']} kept "
            f"({outcomes['wrong']} wrong, {outcomes['unfinished']} without an end)"
        )
        if not traces:
            raise UserError(
                f"none of the teacher's {len(examples) * self.samples} traces is right and finished: use a "
                f"better teacher "
                "(model.teacher), or let it write longer (data.sampling.max_new_tokens)"
            )
        return traces

    def _answers(
        self,
        examples: Sequence[Example],
        retokenizer: Retokenizer,
        teacher: LazyModel,
        cache: Path,
        label: str,
    ) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
        """The teacher's prompts for some problems, and `samples` completions of each, which are cached."""
        prompts = [retokenizer.prompt_ids(example) for example in examples]
        check_room(examples, prompts, teacher.source)
        completions = sample_completions(
            teacher,
            prompts,
            self.sampling or Sampling(temperature=1.0),
            samples=self.samples,
            batch_size=self.sampling_batch_size,
            seed=self.seed,
            cache=cache,
            label=label,
        )
        return prompts, completions

    def note_success(
        self,
        traces: Traces,
        student: ModelSource,
        teacher: LazyModel,
        cache: Path,
        say: Callable[[str], None] = print,
    ) -> Traces:
        """Let the teacher answer the traces' problems, and note in their signals how many answers are right.

        Args:
            traces: training set.
            student: for the prompts.
            teacher: writes `samples` answers to each problem, which are cached.
            cache: folder of all caches.
            say: reports how many problems it solves.

        Returns:
            The traces with the signal `teacher_success`.

        Raises:
            UserError: it solves none.
        """
        assert self.grade is not None  # checked before training
        retokenizer = self.retokenizer(student, teacher.source)
        examples = list({problem_of_example(trace.example): trace.example for trace in traces}.values())
        label = "teacher answers the problems"
        prompts, completions = self._answers(examples, retokenizer, teacher, cache, label)
        shares: dict[str, float] = {}
        for example, prompt, written in zip(examples, prompts, completions, strict=True):
            texts = [written_text(retokenizer.tokenizer, prompt, ids) for ids in written]
            right = [graded(self.grade, example, text).correct for text in texts]
            shares[problem_of_example(example)] = sum(right) / len(right)
        solved = sum(share > 0 for share in shares.values())
        say(f"the teacher solves {solved} of {len(examples)} problems (data.samples={self.samples} answers)")
        if not solved:
            raise UserError(
                f"the teacher solves none of the {len(examples)} problems, so that nothing would be learned "
                f"of it: use a better teacher (model.teacher), or let it write longer (data.max_new_tokens)"
            )

        def of_problem(place: int, trace: Trace) -> np.ndarray:
            return np.full(
                len(trace.completion_ids), shares[problem_of_example(trace.example)], dtype=np.float32
            )

        return traces.with_signal("teacher_success", of_problem)

    def _fitting(
        self,
        traces: Traces,
        student: LanguageModel,
        contexts: Mapping[str, int],
        say: Callable[[str], None],
    ) -> Traces:
        """Traces that fit into `max_length` and the models' contexts (`contexts`: by model name)."""
        student_name, vocab_size = student.source.name, student.vocab_size
        name, context = min(contexts.items(), key=lambda item: item[1])
        limit = min(self.max_length or context, context)
        scanned = traces.scan
        longer = scanned.lengths > limit
        wrong = (scanned.prompts == 0) | (longer if self.overlong == "error" else False)
        if wrong.any():
            trace = traces[int(wrong.argmax())]
            _check_prompt(trace)
            prompt = len(trace.prompt_ids) >= context
            of_all = f"{int(longer.sum()):,} of {len(traces):,} traces are longer: "
            raise UserError(
                f"the prompt of problem {trace.example.place} has {len(trace.prompt_ids)} tokens, "
                f"more than "
                f"the context of {name} ({context}); {of_all}leave them out with data.overlong=drop"
                if prompt
                else f"trace {trace.example.place} has {len(trace)} tokens, more than {limit} "
                f"({'data.max_length' if limit < context else 'the context of ' + name}); "
                f"{of_all}leave them out with data.overlong=drop"
            )
        fitting = traces.take(np.flatnonzero(~longer))
        if not fitting:
            remedy = "raise data.max_length" if limit < context else f"{name} can read no more"
            raise UserError(f"all {len(traces)} traces are longer than {limit} tokens: {remedy}")
        if (foreign := fitting.scan.largest >= vocab_size).any():
            at = int(foreign.argmax())
            trace, largest = fitting[at], int(fitting.scan.largest[at])
            if student.source.rows is not None:
                raise UserError(
                    f"problem {trace.example.place} has the token "
                    f"{student.tokenizer.convert_ids_to_tokens(largest)!r}, which {student_name} has and "
                    f"another model of this loss has not: take it out of the data, or take loss=dcod_spans, "
                    f"uld or gold, which compare different tokens"
                )
            raise UserError(
                f"problem {trace.example.place} has token {largest}, for which {student_name} has no row in "
                f"its matrix of {vocab_size}: its tokenizer is not the one that the model was made with"
            )
        if len(fitting) < len(traces):
            left_out = len(traces) - len(fitting)
            say(f"{left_out} of {len(traces)} traces are longer than {limit} tokens and left out")
        return fitting


def _tokenizing(student: ModelSource) -> dict[str, Any]:
    """Key of what the tokens depend on besides text and prompt: tokenizer, template, and the code."""
    tokenizer = student.tokenizer
    digest = hashlib.sha256(template_of(tokenizer).encode())
    fast = getattr(tokenizer, "backend_tokenizer", None)
    digest.update((student.fingerprint if fast is None else fast.to_str()).encode())
    for name in _CODE:
        digest.update(Path(str(sys.modules[name].__file__)).read_bytes())
    return {
        "tokenizer": student.vocabulary,
        "end_ids": student.end_ids,
        "details": digest.hexdigest(),
        "versions": {name: version(name) for name in ("tokenizers", "transformers")},
    }


def _check_prompt(trace: Trace) -> None:
    if len(trace.prompt_ids) == 0:
        raise UserError(
            f"the prompt of problem {trace.example.place} is empty: nothing predicts the completion's first "
            f"token: leave the record out, or put words around the problem (data.student_prompt.user)"
        )


def _say_thoughts(traces: Sequence[Trace], student: LanguageModel, say: Callable[[str], None]) -> None:
    """Say that traces think where the student's thinking is off."""
    if template_variables(student.tokenizer).get("enable_thinking") is not False:
        return
    if count := sum("</think>" in (trace.example.completion or "") for trace in traces):
        say(
            f"{count} of {len(traces)} traces have a thought, which is learned though thinking is off "
            f"(model.chat_template_kwargs.enable_thinking=false): null puts it on"
        )
