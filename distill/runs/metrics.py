"""Read a run's `metrics.csv`."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from distill.io.checksums import check

if TYPE_CHECKING:
    import pandas


def read_metrics(path: Path) -> "pandas.DataFrame":
    """Read `metrics.csv`: a row per step, which is the index; a float64 column per metric, NaN if not logged.

    An incomplete last row of a killed run is ignored.

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
    table = pyarrow.csv.read_csv(
        io.BytesIO(text), convert_options=pyarrow.csv.ConvertOptions(column_types=kinds)
    )
    return table.to_pandas().set_index("step")
