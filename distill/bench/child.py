"""A single measurement as a separate process: `python -m distill.bench.child COMPARISON CONTESTANT SETTING`.

Prints the measurement as one line of JSON, the last line of its output."""

import json
import sys
from dataclasses import asdict

from distill.bench.comparisons import COMPARISONS
from distill.bench.inputs import model_folder
from distill.bench.measurement import Measurement, Setting
from distill.bench.meter import Meter
from distill.errors import UserError, first_line

PREPARE = "--prepare"


def main(arguments: list[str]) -> None:
    if arguments[0] == PREPARE:
        setting = Setting(**json.loads(arguments[1]))
        for role in ("student", "teacher"):
            model_folder(setting, role)
        return
    name, contestant, setting = arguments
    try:
        found = measure(name, contestant, Setting(**json.loads(setting)))
    except UserError as error:
        sys.exit(f"error: {error}")
    except ImportError as error:
        sys.exit(f"error: an import fails: {first_line(error)}")
    print(json.dumps(asdict(found)))


def measure(comparison: str, contestant: str, setting: Setting) -> Measurement:
    """Measure a contestant under a setting in this process."""
    meter = Meter(setting)
    COMPARISONS[comparison].contestant(contestant)(setting, meter)
    return meter.measurement()


if __name__ == "__main__":
    main(sys.argv[1:])
