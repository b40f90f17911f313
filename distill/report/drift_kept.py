"""Store drifts with complete curves in files, so that they can be read back without running models."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill.analysis.drift_curves import Curve, Drift
from distill.io.files import write_atomically
from distill.statistics import Figure


def write_drift(path: Path, drift: Drift, key: Mapping[str, Any]) -> None:
    """Write a drift as `.npz`, atomically.

    Args:
        path: file to write.
        drift: the drift.
        key: cache key, everything the drift depends on as JSON values.
    """
    said = {
        "key": key,
        "problems": drift.problems,
        "completions": drift.completions,
        "least_problems": drift.least_problems,
        "notes": drift.notes,
        "figures": {name: [one.value, one.low, one.high] for name, one in drift.figures.items()},
    }
    arrays: dict[str, Any] = {"said": np.asarray(json.dumps(said))}
    arrays |= {
        f"curve {name}": np.stack([one.value, one.low, one.high]) for name, one in drift.curves.items()
    }
    arrays |= {f"reach {name}": counts for name, counts in drift.reach.items()}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:  # given a path, numpy would append .npz
            np.savez_compressed(stream, **arrays)

    write_atomically(path, write)


def read_drift(path: Path, key: Mapping[str, Any]) -> Drift | None:
    """Read a drift written by `write_drift`; None if it is missing, unreadable or has another key.

    The caller then measures it again; completions and token values are cached separately."""
    try:
        # Opened here, because numpy does not close a damaged file.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            said = json.loads(str(arrays["said"]))
            if said["key"] != json.loads(json.dumps(key)):
                return None
            return Drift(
                problems=said["problems"],
                completions=tuple(said["completions"]),
                least_problems=said["least_problems"],
                curves={name: Curve(*values) for name, values in _under("curve ", arrays)},
                reach=dict(_under("reach ", arrays)),
                figures={name: Figure(*values) for name, values in said["figures"].items()},
                notes=tuple(said["notes"]),
            )
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile):
        return None


def _under(prefix: str, arrays: Any) -> list[tuple[str, np.ndarray]]:
    return [(name.removeprefix(prefix), arrays[name]) for name in arrays.files if name.startswith(prefix)]
