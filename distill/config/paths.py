"""Where the configuration tree lies: in the installed package, or beside it in a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent
CONFIG = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _CHECKOUT / "conf"
# How a user starts training, for messages.
TRAIN = "python train.py" if CONFIG.parent == _CHECKOUT else "distill train"
