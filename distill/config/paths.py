"""Path of the configuration folder: in the installed package, or beside it in a checkout."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = None if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent  # None in an installed wheel
CONFIG = (CHECKOUT or _PACKAGE) / "conf"
# The command that starts training, for messages.
TRAIN = "python train.py" if CHECKOUT else "distill train"


def user_dirs(arguments: Sequence[str]) -> list[Path]:
    """The folders of `--config-dir`, Hydra's flag for a user's own YAML files.

    Raises:
        UserError: a folder does not exist, or the flag has none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config-dir", "-cd", action="append", default=[], type=Path)
    try:
        found = [path.absolute() for path in parser.parse_known_args(arguments)[0].config_dir]
    except argparse.ArgumentError as error:
        raise UserError("--config-dir needs a folder after it, such as --config-dir my_conf") from error
    for path in found:
        if not path.is_dir():
            raise UserError(f"--config-dir {path}: there is no such folder")
    return found
