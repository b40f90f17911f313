"""The record of a trace: what was asked, what was written, by whom and how, and what was found of it.

A trace set is a folder with `traces.parquet`, one row a completion, that any Parquet reader opens;
`python -m distill.records` prints it as JSON Lines. Token ids are kept: text that is tokenised again drifts.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.config.console import one_sentence_errors
from distill.data.trace_set import read_records


def json_lines(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The same as JSON Lines."""
    return (json.dumps(record, ensure_ascii=False) for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m distill.records", description="Print a trace set as JSON Lines."
    )
    parser.add_argument("trace_set", type=Path, help="folder of a trace set, or its Parquet file")
    with contextlib.suppress(BrokenPipeError):  # `| head` has seen enough
        for line in json_lines(read_records(parser.parse_args().trace_set)):
            print(line, flush=True)
        return
    sys.stderr.close()  # nor does Python say so at its end


if __name__ == "__main__":
    with one_sentence_errors():
        main()
