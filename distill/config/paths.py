"""Path of the configuration folder: in the installed package, or beside it in a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = None if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent  # None in an installed wheel
CONFIG = (CHECKOUT or _PACKAGE) / "conf"
# The command that starts training, for messages.
TRAIN = "python train.py" if CHECKOUT else "distill train"
