"""Where the configuration tree lies."""

from pathlib import Path

CONFIG = Path(__file__).resolve().parents[2] / "conf"
