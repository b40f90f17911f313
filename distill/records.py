"""`python -m distill.records`: print a trace set as JSON Lines.

A trace set is a folder with `traces.parquet`, one row per completion: the problem, the completion, the model
and settings that wrote it, and its grade. It stores token ids, because tokenizing the text again may give
others.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.config.console import one_sentence_errors
from distill.data.trace_set import iter_records


def json_lines(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Records as lines of JSON."""
    return (json.dumps(record, ensure_ascii=False) for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m distill.records", description="Print a trace set as JSON Lines."
    )
    parser.add_argument("trace_set", type=Path, help="folder of a trace set, or its Parquet file")
    with contextlib.suppress(BrokenPipeError):  # the reader, such as `| head`, has closed the pipe
        for line in json_lines(iter_records(parser.parse_args().trace_set)):
            print(line, flush=True)
        return
    sys.stderr.close()  # keeps Python from reporting the broken pipe at exit


if __name__ == "__main__":
    with one_sentence_errors():
        main()
