"""A run's `metrics.csv` as a table."""

import csv
import io
from pathlib import Path

import pandas
import pyarrow.csv


def read_metrics(path: Path) -> pandas.DataFrame:
    """`metrics.csv`: a row a step, which is the index; a column a metric, float64, NaN where there is none.

    A run that was killed while it wrote may have left half a row at the end, which does not count.

    Raises:
        OSError, ValueError: it cannot be read; the message says why.
    """
    text = path.read_bytes()
    text = text[: text.rfind(b"\n") + 1]
    if not text:
        return pandas.DataFrame(index=pandas.Index([], dtype="int64", name="step"))
    names = next(csv.reader([text[: text.find(b"\n")].decode()]))
    if "step" not in names:
        raise ValueError("it has no column step")
    # Arrow reads the very number that was written, not one a last bit beside it.
    kinds = {name: pyarrow.int64() if name == "step" else pyarrow.float64() for name in names}
    table = pyarrow.csv.read_csv(
        io.BytesIO(text), convert_options=pyarrow.csv.ConvertOptions(column_types=kinds)
    )
    return table.to_pandas().set_index("step")
