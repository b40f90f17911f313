#!/usr/bin/env bash
# One would guess: ParquetFile(path).iter_batches(batch_size=64) reads a file piece by piece, so that memory is bounded by
# a row group however long the file is. It is documented as "Read streaming batches from a Parquet file".
# What happens: the bytes of all row groups that were read stay in memory until the iterator ends, so the peak grows
# with the file. pre_buffer is True by default: it is described as merging and prefetching column chunks for file systems
# with high latency, yet it acts on local files too, and what it has fetched is not let go. With pre_buffer=False
# the same loop holds about one row group.
# Why it matters: sets of reasoning traces are Parquet files of many GiB, and a reader that "streams" them runs out of memory.
# Source: pyarrow/parquet/core.py, ParquetFile. https://github.com/apache/arrow/issues/39808 reports growing memory for
# Dataset.to_batches(); ParquetFile.iter_batches() is often recommended in its place.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1
cd "$work"
cat > show.py <<'EOF'
import os

import pyarrow as pa
import pyarrow.parquet as pq

print("pyarrow", pa.__version__)


def write(path: str, groups: int) -> None:
    """Row groups of 16 MB each."""
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as file:
        for _ in range(groups):
            file.write_table(pa.table({"text": [os.urandom(8000).hex() for _ in range(1000)]}, schema=schema))


def most_held(path: str, **settings: bool) -> float:
    """MB that pyarrow holds at most between two batches."""
    held, before = 0, pa.total_allocated_bytes()
    with pq.ParquetFile(path, **settings) as file:
        for batch in file.iter_batches(batch_size=64):
            held = max(held, pa.total_allocated_bytes() - before)
    return held / 1e6


held = {}
for groups in (5, 20):
    write("traces.parquet", groups)
    print(f"{groups} row groups, {os.path.getsize('traces.parquet') / 1e6:.0f} MB:")
    for settings in ({}, {"pre_buffer": False}):
        held[groups, bool(settings)] = most_held("traces.parquet", **settings)
        print(f"  {settings or 'defaults'}: {held[groups, bool(settings)]:.0f} MB held")
assert held[5, False] > 75 and held[20, False] > 300  # the whole file
assert held[5, True] < 50 and held[20, True] < 50
EOF
"$work/venv/bin/python" show.py
