"""Read training runs from W&B's offline files and from its API."""

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
_BLOCK, _HEADER = 32768, 7  # of the LevelDB log format; the file's first 7 bytes count as part of a block
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_STEP = "trainer/global_step"  # the optimizer step; `_step` counts calls of log()


@dataclass
class WandbRun:
    """A run from W&B's offline files or API.

    Attributes:
        id: W&B's run id.
        name: of the run.
        group: W&B group, which is the sweep's name.
        config: nested.
        summary: nested.
        history: logged rows, in order.
        ended: how the run ended if it did not finish; None if it did.
        folder: folder of its tables; None for a run of the API.
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
    """The `.wandb` files in a folder or below it; the files of a resumed run are grouped and in order."""
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
    """Read a run from its files, in order if it was resumed.

    Raises:
        OSError, ValueError: a file cannot be read or is damaged; the message names the file and the place.
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
    """The rows of the table that an offline run last logged under this name; none without such a table.

    Raises:
        OSError, ValueError: the table's file is missing or damaged.
    """
    described = run.summary.get(name)
    if run.folder is None or not isinstance(described, dict) or "path" not in described:
        return []
    return _rows(_inside(run.folder, described["path"]).read_text(encoding="utf-8"))


def read_api(path: str, group: str | None) -> Iterator[tuple[str, Any]]:
    """The runs of a W&B project, oldest first.

    Args:
        path: `entity/project`, or a project of the account's default entity.
        group: only the runs of this W&B group.

    Yields:
        A run's address, and the run of `wandb.Api`.

    Raises:
        UserError: the user is not logged in, W&B cannot be reached, or there is no such project.
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
    except Exception as error:  # classes differ between versions: no network, a bad key, no such project
        raise UserError(f"wandb:{path} cannot be read: {first_line(error)}") from error


def read_api_run(found: Any) -> WandbRun:
    """Convert a run of `wandb.Api`, with its full history instead of W&B's sample of it."""
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
    """Like `read_table`, for a run of `wandb.Api`."""
    described = _plain(found.summary_metrics).get(name)
    if not isinstance(described, dict) or "path" not in described:
        return []
    with tempfile.TemporaryDirectory() as folder:
        place = _inside(Path(folder), described["path"])
        found.file(described["path"]).download(root=folder).close()
        return _rows(place.read_text(encoding="utf-8"))


def read_history(rows: Iterable[Mapping[str, Any]]) -> tuple[pandas.DataFrame, list[dict[str, Any]]]:
    """The content of `metrics.csv` and `weights.jsonl`, from the rows of W&B's history.

    A resumed run repeats the steps after its checkpoint. As in `metrics.csv`, everything after the checkpoint
    is dropped then, and the new rows count.

    Returns:
        The metrics, with a row per step and a float64 column per metric, NaN if not logged; and the
        histograms of the token weights, as `{"step", "edges", "counts"}`.
    """
    steps: dict[int, dict[str, float]] = {}
    spans: dict[int, dict[str, Any]] = {}
    last = -1
    for row in rows:
        if (place := number(row.get(_STEP))) is None:
            continue  # the row logs a table
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
    else:  # W&B may store bins of equal width in packed form
        packed = histogram["packedBins"]
        edges = packed["min"] + packed["size"] * np.arange(packed["count"] + 1)
    return np.round(edges, 6).tolist()


def _records(data: bytes) -> Iterator[Any]:
    """The protobuf messages of a `.wandb` file, up to an incomplete end."""
    from wandb.proto import wandb_internal_pb2

    if not _MAGIC.startswith(data[:4].rstrip(b"\0")):
        raise ValueError("this is no file of W&B's")
    for content in _log(data):
        record: Any = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            record.ParseFromString(content)
        except Exception as error:  # its class depends on protobuf's backend
            raise ValueError(f"a record cannot be read ({first_line(error)})") from error
        yield record


def _log(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log (github.com/google/leveldb, doc/log_format.md), with W&B's own checksum:
    an unmasked CRC-32 over type and content.

    If the writer was killed or is still writing, the file ends within a record, possibly followed by zeros.
    The incomplete record is ignored.
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
    """Update a nested mapping. Values stay undecoded until `_decode`, because W&B sends the summary again
    with every row of the history."""
    for item in items:
        inner = node
        if nested := item.nested_key:
            for key in nested[:-1]:
                if not isinstance(inner.get(key), dict):
                    inner[key] = {}
                inner = inner[key]
            inner[nested[-1]] = _UndecodedJson(item.value_json)
        else:
            inner[item.key] = _UndecodedJson(item.value_json)


class _UndecodedJson(str):
    """JSON text that is not decoded yet."""

    __slots__ = ()


def _decode(node: Any) -> Any:
    """Decode JSON values; in a mapping, in place."""
    if isinstance(node, _UndecodedJson):
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
    """Convert W&B's mappings to dicts."""
    return {key: _plain(value) for key, value in node.items()} if isinstance(node, Mapping) else node


def _inside(folder: Path, path: Any) -> Path:
    """A table's file.

    Raises:
        ValueError: its path leads out of the folder; the run may be somebody else's.
    """
    place = (folder / str(path)).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise ValueError(f"the table's path {str(path)!r} leads out of the run's folder")
    return place


def _rows(text: str) -> list[dict[str, Any]]:
    table = json.loads(text)
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
