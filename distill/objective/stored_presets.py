"""The table of presets as it was last made, which is read without importing torch."""

import hashlib
from pathlib import Path

STORED = Path(__file__).with_name("presets.md")


def stored_table(config_dir: Path) -> str | None:
    """The stored table; None where `conf/loss/` and `conf/shared/` are not those that it was made of."""
    if not STORED.is_file():
        return None
    mark, _, text = STORED.read_text(encoding="utf-8").partition("\n")
    return text.rstrip("\n") if mark == mark_of(config_dir) else None


def mark_of(config_dir: Path) -> str:
    """The first line of the stored table, with the hash of the files that losses consist of."""
    digest = hashlib.sha256()
    for folder in ("loss", "shared"):
        for path in sorted((config_dir / folder).glob("*.yaml")):
            digest.update(f"{folder}/{path.name}\0{path.read_text(encoding='utf-8')}\0".encode())
    made = "python -m distill.objective.preset_table writes this"
    return f"<!-- of the files {digest.hexdigest()[:16]}; {made} -->"
