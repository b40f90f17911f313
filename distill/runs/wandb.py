"""Training runs as W&B holds them: the files that an offline run leaves, and the API."""

import json
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from distill.errors import UserError, first_line
from distill.runs.read import number

_MAGIC, _MAGIC_BYTES = b":W&B", 7
_BLOCK, _HEADER = 32768, 7  # of the LevelDB log format, the file's own first 7 bytes counted
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_STEP = "trainer/global_step"  # the optimizer step; `_step` counts calls of log()


@dataclass
class WandbRun:
    """What W&B was told of a run, whether its file says so or the API.

    Attributes:
        id: W&B's.
        name: the run's.
        group: the sweep's.
        config: nested.
        summary: nested.
        history: the rows as logged, in their order.
        ended: in words where the run did not end well; None where it did.
        folder: where the tables lie; None of the API's.
    """

    id: str = ""
    name: str = ""
    group: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    ended: str | None = "unfinished: its W&B file has no end"
    folder: Path | None = None


def find_files(folder: Path) -> list[list[Path]]:
    """The `.wandb` files in a folder or below it, those of one resumed run together and in order."""
    parts: dict[tuple[Path, str], dict[Path, Path]] = {}
    for path in sorted(folder.rglob("run-*.wandb")):
        if path.parent.name != "latest-run":  # a link to one of the others
            parts.setdefault((path.parent.parent, path.name), {})[path.resolve()] = path
    # offline-run-<date>_<time>-<id> and run-<date>_<time>-<id>
    return [
        sorted(own.values(), key=lambda path: path.parent.name.removeprefix("offline-"))
        for own in parts.values()
    ]


def read_files(paths: Iterable[Path]) -> WandbRun:
    """A run from its files, the parts of a resumed one in their order.

    Raises:
        OSError, ValueError: a file cannot be read or is damaged; the message says which and where.
    """
    run = WandbRun()
    for path in paths:
        run.ended, run.folder = WandbRun.ended, path.parent / "files"
        try:
            for record in _records(path.read_bytes()):
                _take(run, record)
            _decode(run.config)
            _decode(run.summary)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return run


def read_table(run: WandbRun, name: str) -> list[dict[str, Any]]:
    """The rows of a table that an offline run logged last under this name; none where there is none.

    Raises:
        OSError, ValueError: its file is not there or damaged.
    """
    described = run.summary.get(name)
    if run.folder is None or not isinstance(described, dict) or "path" not in described:
        return []
    return _rows((run.folder / described["path"]).read_text(encoding="utf-8"))


def read_api(path: str, group: str | None) -> Iterator[tuple[str, Any]]:
    """The runs of a W&B project, oldest first.

    Args:
        path: `entity/project`, or a project of the account's default entity.
        group: only this one's.

    Yields:
        A run's address, and `wandb.Api`'s run.

    Raises:
        UserError: nobody is logged in, or W&B does not answer or knows no such project.
    """
    import wandb

    from distill.runs.loggers import wandb_logged_in

    if not wandb_logged_in():
        raise UserError(
            f"wandb:{path}: nobody is logged in to W&B here: run `wandb login`, or set WANDB_API_KEY"
        )
    try:
        api = wandb.Api(timeout=60)
        filters = {} if group is None else {"group": group}
        for run in api.runs(path, filters=filters, order="+created_at"):
            yield f"wandb:{'/'.join(run.path)}", run
    except Exception as error:  # of many kinds, as versions differ: no network, a bad key, no such project
        raise UserError(f"wandb:{path} cannot be read: {first_line(error)}") from error


def read_api_run(found: Any) -> WandbRun:
    """A run of `wandb.Api`, with its whole history and not a sample of it."""
    state = found.state
    return WandbRun(
        id=found.id,
        name=found.name or found.id,
        group=found.group,
        config={key: value for key, value in found.config.items() if key != "_wandb"},
        summary=_plain(found.summary_metrics),
        history=list(found.scan_history()),
        ended=None if state == "finished" else f"unfinished: W&B says that it is {state}",
    )


def download_table(found: Any, name: str) -> list[dict[str, Any]]:
    """As `read_table`, of a run of `wandb.Api`."""
    described = _plain(found.summary_metrics).get(name)
    if not isinstance(described, dict) or "path" not in described:
        return []
    with tempfile.TemporaryDirectory() as folder:
        found.file(described["path"]).download(root=folder).close()
        return _rows((Path(folder) / described["path"]).read_text(encoding="utf-8"))


def read_history(rows: Iterable[Mapping[str, Any]]) -> tuple[pandas.DataFrame, list[dict[str, Any]]]:
    """What `metrics.csv` and `weights.jsonl` hold, from the rows of W&B's history.

    A run that was resumed repeats the steps behind its checkpoint: the last word counts, and what lies behind
    the checkpoint and was not said again is forgotten, as in `metrics.csv`.

    Returns:
        A row a step, a column a metric, float64, NaN where there is none; and the histograms of the weights,
        as `{"step", "edges", "counts"}`.
    """
    steps: dict[int, dict[str, float]] = {}
    spans: dict[int, dict[str, Any]] = {}
    last = -1
    for row in rows:
        if (place := number(row.get(_STEP))) is None:
            continue  # the row of a table
        step = int(place)
        if "train/loss" in row:
            if step < last:
                steps = {known: values for known, values in steps.items() if known <= step}
                spans = {known: span for known, span in spans.items() if known < step}
            last = step
        own = steps.setdefault(step, {})
        for name, value in row.items():
            if name == "weights/histogram" and isinstance(value, dict):
                spans[step] = {"step": step, "edges": _edges(value), "counts": value["values"]}
            elif name[0] != "_" and name not in (_STEP, "epoch") and (figure := number(value)) is not None:
                own[name] = figure
    filled = sorted(step for step, values in steps.items() if values)
    frame = pandas.DataFrame([steps[step] for step in filled], dtype="float64")
    frame.index = pandas.Index(filled, dtype="int64", name="step")
    return frame, [spans[step] for step in sorted(spans)]


def _edges(histogram: Mapping[str, Any]) -> list[float]:
    if "bins" in histogram:
        edges = np.asarray(histogram["bins"], dtype=float)
    else:  # W&B may pack bins of one width
        packed = histogram["packedBins"]
        edges = packed["min"] + packed["size"] * np.arange(packed["count"] + 1)
    return np.round(edges, 6).tolist()


def _records(data: bytes) -> Iterator[Any]:
    """The protocol messages of a `.wandb` file, as far as it was written."""
    from wandb.proto import wandb_internal_pb2

    if not _MAGIC.startswith(data[:4].rstrip(b"\0")):
        raise ValueError("this is no file of W&B's")
    for content in _log(data):
        record: Any = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            record.ParseFromString(content)
        except Exception as error:  # the message's own kind, which depends on protobuf's backend
            raise ValueError(f"a record cannot be read ({first_line(error)})") from error
        yield record


def _log(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log (github.com/google/leveldb, doc/log_format.md), whose checksum is W&B's
    own: CRC-32 over the kind and the content, unmasked.

    A file whose writer was killed, or is writing still, ends within a record; there may be zeros behind it,
    where the rest was not yet written. That is its end.
    """
    position, parts = _MAGIC_BYTES, b""
    written = len(data.rstrip(b"\0"))
    while position + _HEADER <= len(data):
        room = _BLOCK - position % _BLOCK
        if room < _HEADER:
            position += room
            continue
        checksum = int.from_bytes(data[position : position + 4], "little")
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        end = position + _HEADER + length
        content = data[position + _HEADER : end]
        if len(content) < length or zlib.crc32(data[position + 6 : end]) != checksum:
            if written < end:
                return
            raise ValueError(f"damaged at byte {position}: the checksum is another")
        if kind in (_FULL, _FIRST):
            parts = b""
        parts += content
        if kind in (_FULL, _LAST):
            yield parts
        position = end


def _take(run: WandbRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "history":
        row: dict[str, Any] = {}
        _update(row, record.history.item)
        run.history.append({name: _decode(value) for name, value in row.items()})
    elif kind == "summary":
        _update(run.summary, record.summary.update)
        _remove(run.summary, record.summary.remove)
    elif kind == "config":
        _update(run.config, record.config.update)
        _remove(run.config, record.config.remove)
    elif kind == "run":
        run.id, run.name = record.run.run_id, record.run.display_name or record.run.run_id
        run.group = record.run.run_group or None
        _update(run.config, record.run.config.update)
        run.config.pop("_wandb", None)
    elif kind == "exit":
        run.ended = None if record.exit.exit_code == 0 else f"failed: exit code {record.exit.exit_code}"


def _update(node: dict[str, Any], items: Iterable[Any]) -> None:
    """Values stay as they are sent, for `_decode`: a summary is sent anew with every row of the history."""
    for item in items:
        inner = node
        if nested := item.nested_key:
            for key in nested[:-1]:
                if not isinstance(inner.get(key), dict):
                    inner[key] = {}
                inner = inner[key]
            inner[nested[-1]] = _Sent(item.value_json)
        else:
            inner[item.key] = _Sent(item.value_json)


class _Sent(str):
    """JSON that was not read yet."""

    __slots__ = ()


def _decode(node: Any) -> Any:
    """Read what was sent, in mappings in place."""
    if isinstance(node, _Sent):
        try:
            return float(node) if node[:1] in "-0123456789" and "." in node else json.loads(node)
        except ValueError as error:
            raise ValueError(f"a value is no JSON: {node[:40]!r}") from error
    if isinstance(node, dict):
        for key, value in node.items():
            node[key] = _decode(value)
    return node


def _remove(node: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *above, last = item.nested_key or [item.key]
        inner: Any = node
        for key in above:
            inner = inner.get(key, {}) if isinstance(inner, dict) else {}
        if isinstance(inner, dict):
            inner.pop(last, None)


def _plain(node: Any) -> Any:
    """W&B's mappings as dicts."""
    return {key: _plain(value) for key, value in node.items()} if isinstance(node, Mapping) else node


def _rows(text: str) -> list[dict[str, Any]]:
    table = json.loads(text)
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
