"""Examples and records of trace sets on disk, made again one by one when they are asked for."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.readers import iter_examples, read_examples
from distill.data.trace import Example, Recorded
from distill.data.trace_set import Record
from distill.io.sequences import Lazy, Spool, pack, spooled, unpack

_TEXTS = ("id", "problem", "gold", "completion", "where", "details", "system", "messages", "tools", "teacher")
_OF_TOKENS = ("tokenizer", "finished", "correct", "teacher", "writer", "weight", "learn_from")
_LISTS = ("prompt_ids", "completion_ids", "teacher_logprobs")


class Examples(Lazy[Example]):
    """Examples in a file without a name, which ends with the process.

    Attributes:
        fingerprint: hash of all of them, and of where they were read.
    """

    def __init__(self, spool: Spool) -> None:
        super().__init__(len(spool), lambda place: _example(spool[place]))
        self.fingerprint = spool.fingerprint


def spool_examples(source: Callable[[], Iterable[Example]], folder: Path | None = None) -> Examples:
    """Read all examples into a file.

    Args:
        source: returns the examples, as `TraceRecipe.source` does.
        folder: where the file is.
    """
    found = each_example(source)
    return found if isinstance(found, Examples) else Examples(spooled(map(_block, found), folder))


def each_example(source: Callable[[], Iterable[Example]]) -> Iterable[Example]:
    """The examples of a source; of `read_examples` a few are in memory at once."""
    if isinstance(source, partial) and source.func is read_examples:
        return iter_examples(*source.args, **source.keywords)
    return source()


def spool_records(records: Iterable[Record], folder: Path | None = None) -> Lazy[Record]:
    """Records of a trace set, read into a file."""
    spool = spooled(map(_record_block, records), folder)
    return Lazy(len(spool), lambda place: _record(spool[place]))


def _block(example: Example) -> bytes:
    recorded, arrays = example.recorded, list[np.ndarray]()
    tokens = None
    if recorded is not None:
        tokens = [getattr(recorded, name) for name in _OF_TOKENS]
        arrays = [own for name in _LISTS if (own := getattr(recorded, name)) is not None]
    return pack([[getattr(example, name) for name in _TEXTS], tokens], arrays)


def _example(block: bytes) -> Example:
    (texts, tokens), arrays = unpack(block)
    texts = dict(zip(_TEXTS, texts, strict=True))
    for name in ("messages", "tools"):
        texts[name] = texts[name] and tuple(texts[name])
    if tokens is None:
        return Example(**texts)
    known = dict(zip(_OF_TOKENS, tokens, strict=True))
    known["teacher"] = known["teacher"] and tuple(known["teacher"])
    logprobs = arrays[2] if len(arrays) == 3 else None
    recorded = Recorded(prompt_ids=arrays[0], completion_ids=arrays[1], teacher_logprobs=logprobs, **known)
    return Example(**texts, recorded=recorded)


def _record_block(record: Mapping[str, Any]) -> bytes:
    """A record with its long lists as arrays, which are read faster than JSON."""
    lists = [name for name in _LISTS if isinstance(record.get(name), list)]
    rest = {name: value for name, value in record.items() if name not in lists}
    return pack([rest, lists], [np.asarray(record[name]) for name in lists])


def _record(block: bytes) -> Record:
    (rest, lists), arrays = unpack(block)
    return rest | {name: own.tolist() for name, own in zip(lists, arrays, strict=True)}
