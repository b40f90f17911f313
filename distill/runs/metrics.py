"""Read a run's `metrics.csv`."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from distill.io.checksums import check

if TYPE_CHECKING:
    import pandas


def read_metrics(path: Path, wanted: Callable[[str], bool] | None = None) -> "pandas.DataFrame":
    """Read `metrics.csv`: a row per step, which is the index; a float64 column per metric, NaN if not logged.

    An incomplete last row of a killed run is ignored.

    Args:
        path: the file.
        wanted: whether a metric is read, by its name; None: all are.

    Raises:
        OSError, ValueError: the file cannot be read; the message says why.
        UserError: it is not what a finished run wrote.
    """
    import pandas  # here, as a run that trains needs neither
    import pyarrow.csv

    check([path], "take it from a copy, or train again")
    text = path.read_bytes()
    text = text[: text.rfind(b"\n") + 1]
    if not text:
        return pandas.DataFrame(index=pandas.Index([], dtype="int64", name="step"))
    names = next(csv.reader([text[: text.find(b"\n")].decode()]))
    if "step" not in names:
        raise ValueError("it has no column step")
    # Arrow parses numbers exactly; pandas' default parser may be off in the last bit.
    kinds = {name: pyarrow.int64() if name == "step" else pyarrow.float64() for name in names}
    read = [name for name in kinds if name == "step" or wanted is None or wanted(name)]
    table = pyarrow.csv.read_csv(
        io.BytesIO(text),
        pyarrow.csv.ReadOptions(use_threads=False),  # a thread costs more than so small a file
        convert_options=pyarrow.csv.ConvertOptions(column_types=kinds, include_columns=read),
    )
    return table.to_pandas(use_threads=False).set_index("step")
