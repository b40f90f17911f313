"""Write an evaluation's page `results.html`: its figures, and every problem with its completions.

The page is a single self-contained file made of `page.html`, `.css`, `.js` and the data.
Completions are embedded as packed JSON and shown only as text; a content security policy allows no script
except the page's.

`python -m distill.evaluation.page <folder>` rewrites it from a folder's `results.json` and `samples.jsonl`.
"""

import argparse
import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from distill.config.console import one_sentence_errors
from distill.data.thoughts import THINKING, without_thinking
from distill.errors import UserError
from distill.evaluation.excerpts import SHORT_ANSWER, pieces, shortened
from distill.io.checksums import check
from distill.io.files import as_json, write_atomically

LARGEST_PAGE = 30_000_000  # bytes; browsers open it within a second or two
_LONGEST = 200_000  # maximum characters shown of one completion
_SHORTEST = 1_000  # completions are never cut below this many characters to limit the page's size
_BYTES_PER_CHARACTER = 0.5  # gzipped, in base 64; a first guess, corrected by the page's actual size
_CHUNK = 256_000  # characters unpacked at a time when a problem is expanded


class SampleFile:
    """Records of a `samples.jsonl`, read from disk on every iteration.

    Raises:
        UserError: during iteration, if a line is not a valid record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        try:
            with self.path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    try:
                        record = json.loads(line)
                        _ = record["benchmark"], record["id"], record["completion"]
                    except (ValueError, KeyError, TypeError) as error:
                        raise UserError(
                            f"{self.path}, line {number} is no sample of an evaluation ({error}): "
                            "run the evaluation again"
                        ) from error
                    yield record
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path} cannot be read ({error}): run the evaluation again") from error


def write_page(
    path: Path,
    results: Mapping[str, Any],
    samples: Iterable[Mapping[str, Any]],
    *,
    title: str,
    drift_picture: bytes | None = None,
    largest: int = LARGEST_PAGE,
) -> None:
    """Write the page atomically.

    Samples are streamed; only an index of them is held in memory. If the page would become too large, the
    middle of the longest completions is cut; the page shows where, and how much.

    Args:
        path: file to write.
        results: content of `results.json`, optionally with the evaluation's `date`.
        samples: records of `samples.jsonl`, in the file's order (the page refers to its line numbers). They
            are iterated several times: a list or a `SampleFile`; an iterator is copied into a list.
        title: title of the page.
        drift_picture: PNG, shown if `results` has `drift`.
        largest: target maximum size in bytes.

    Raises:
        UserError: the page cannot be written, or `samples` is a damaged file.
    """
    if isinstance(samples, Iterator):
        samples = list(samples)
    lengths = [len(sample["completion"]) for sample in samples]
    characters = min(_LONGEST, max(lengths, default=0))
    while characters > _SHORTEST and _shown_characters(lengths, characters) * _BYTES_PER_CHARACTER > largest:
        characters = int(characters * 0.8)

    def write(temporary: Path) -> None:
        nonlocal characters
        while True:
            with temporary.open("w", encoding="utf-8") as file:
                _write(file, results, samples, title, drift_picture, characters)
            size = temporary.stat().st_size
            if size <= largest or characters <= _SHORTEST:
                return
            characters = max(_SHORTEST, int(characters * 0.9 * largest / size))

    write_atomically(path, write)


def embedded(value: Any) -> str:
    """Encode a value as JSON that is safe inside a `<script>`: ASCII only, without `<`, `>`, `&`.

    Numbers that are not finite become null.
    """
    text = json.dumps(as_json(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packed(value: Any) -> str:
    """Encode a value as gzipped JSON in base 64."""
    text = json.dumps(as_json(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("ascii"), compresslevel=6, mtime=0)).decode("ascii")


def _shown_characters(lengths: Sequence[int], longest: int) -> int:
    return sum(min(length, longest) for length in lengths)


def _write(
    file: TextIO,
    results: Mapping[str, Any],
    samples: Iterable[Mapping[str, Any]],
    title: str,
    drift_picture: bytes | None,
    characters: int,
) -> None:
    here = Path(__file__)
    script, style, page = (
        here.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".js", ".css", ".html")
    )
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(_well_formed(title)),
        "style": style,
        "script": script,
    }
    before, after = (
        re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], part) for part in page.split("{{data}}")
    )
    picture = base64.b64encode(drift_picture).decode() if drift_picture and results.get("drift") else None
    about = {
        "title": title,
        "results": results,
        "written": f"{datetime.now():%Y-%m-%d %H:%M}",
        "picture": picture and f"data:image/png;base64,{picture}",
        "longest": characters,
    }
    file.write(before)
    file.write(_data("about", embedded(about)))
    index = _Index()
    chunk: list[dict[str, Any]] = []
    size = 0
    for sample in samples:
        index.add(sample, characters)
        settings = results["benchmarks"].get(sample["benchmark"], {}).get("settings", {})
        chunk.append(_detail(sample, characters, settings.get("thinking", THINKING)))
        size += min(len(sample["completion"]), characters)
        if size >= _CHUNK:
            file.write(_data(f"chunk{index.close_chunk()}", packed(chunk)))
            chunk, size = [], 0
    if chunk:
        file.write(_data(f"chunk{index.close_chunk()}", packed(chunk)))
    file.write(_data("index", packed(index.columns())))
    file.write(after)


class _Index:
    """Columns of all samples that the page's list of problems needs; the rest is stored in chunks."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, int]] = {"benchmark": {}, "rule": {}, "reason": {}}
        self._numbers: dict[tuple[str, str], int] = {}
        self._problems: dict[str, list[Any]] = {name: [] for name in ("benchmark", "id", "problem", "gold")}
        self._samples: dict[str, list[Any]] = {}
        self._chunks: list[int] = [0]  # first sample of each chunk

    def add(self, sample: Mapping[str, Any], characters: int) -> None:
        key = str(sample["benchmark"]), str(sample["id"])
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            gold = sample.get("gold")
            for name, value in (
                ("benchmark", self._number("benchmark", key[0])),
                ("id", key[1]),
                ("problem", shortened(str(sample.get("problem") or ""), max(characters, 2 * _SHORTEST))),
                ("gold", None if gold is None else shortened(str(gold), max(characters, 2 * _SHORTEST))),
            ):
                self._problems[name].append(value)
        answer = sample.get("answer")
        row = {
            "problem": self._numbers[key],
            "sample": sample.get("sample", 0),
            "answer": None if answer is None else str(answer)[:SHORT_ANSWER],
            "correct": int(bool(sample.get("correct"))),
            "rule": self._number("rule", str(sample.get("rule") or "none")),
            "reason": self._number("reason", str(sample.get("reason") or "none")),
            "class": sample.get("class"),
            "finished": int(bool(sample.get("finished"))),
            "truncated": int(bool(sample.get("truncated"))),
            "tokens": sample.get("tokens"),
            "repetition": sample.get("repetition"),
            # None in samples of earlier versions, and where answers are no short texts.
            "characters": sample.get("characters"),
            "post_answer": sample.get("post_answer"),
            "several_answers": sample.get("several_answers"),
            "correct_to_first_answer": sample.get("correct_to_first_answer"),
        }
        for name, value in row.items():
            self._samples.setdefault(name, []).append(value)

    def close_chunk(self) -> int:
        """End the current chunk and return its number."""
        self._chunks.append(len(self._samples["problem"]))
        return len(self._chunks) - 2

    def columns(self) -> dict[str, Any]:
        return {
            "names": {kind: list(names) for kind, names in self._names.items()},
            "problems": self._problems,
            "samples": self._samples,
            "chunks": self._chunks,
        }

    def _number(self, kind: str, name: str) -> int:
        return self._names[kind].setdefault(name, len(self._names[kind]))


def _detail(sample: Mapping[str, Any], characters: int, tags: Sequence[str]) -> dict[str, Any]:
    """Details of a completion shown when it is expanded; the answer is marked only after the thinking block,
    which is the part that was graded."""
    completion = str(sample["completion"])
    answer = sample.get("answer")
    answer = None if answer is None else str(answer)
    seen = without_thinking(completion, tags, opened=sample.get("reason") == "unclosed thinking")
    said = "" if seen is None else seen
    thinking = completion[: len(completion) - len(said)]
    if thinking:
        said = said.lstrip("\n")
    text = pieces(said, answer, str(sample.get("rule")), characters)
    detail: dict[str, Any] = {"text": text}
    if thinking:
        thinking = thinking.lstrip().removeprefix(tags[0]).removesuffix(tags[1] if seen is not None else "")
        detail["thinking"] = pieces(thinking, None, "", max(characters - len(said), characters // 3))
        detail["thinking_length"] = len(thinking)
        detail["closed"] = seen is not None
    if (
        answer is not None
        and len(answer) > SHORT_ANSWER
        and not any("answer" in piece for piece in text if isinstance(piece, dict))
    ):
        detail["answer"] = pieces(answer, None, "", characters)
    if sample.get("counts"):
        detail["counts"] = sample["counts"]
    return detail


def _well_formed(text: str) -> str:
    """Replace characters that a UTF-8 file or an HTML title cannot hold."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\ufffd", text)


def _data(name: str, text: str) -> str:
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write an evaluation's results.html anew.")
    parser.add_argument("folder", type=Path, help="of the evaluation: with results.json and samples.jsonl")
    folder = parser.parse_args().folder
    check([folder / "results.json", folder / "samples.jsonl"], "evaluate again")
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'results.json'} cannot be read ({error})") from error
    picture = folder / "drift.png"
    write_page(
        folder / "results.html",
        results,
        SampleFile(folder / "samples.jsonl"),
        title=f"Evaluation of {results.get('model', folder.name)}",
        drift_picture=picture.read_bytes() if picture.is_file() else None,
    )
    print(folder / "results.html")


if __name__ == "__main__":
    with one_sentence_errors():
        main()
