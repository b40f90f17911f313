"""Type checks that the package gets in tests: shapes of tensors by jaxtyping, all else by beartype.

jaxtyping binds the arguments of every call, which takes a hundred times as long as beartype's check. Modules that
work on texts, call by call, and have no shapes are therefore checked by beartype alone."""

from pathlib import Path

from beartype import BeartypeConf, beartype
from beartype.claw import beartype_packages
from jaxtyping import install_import_hook

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # accepts an int for a float

_ROOT = Path(__file__).resolve().parents[1]
_ON_TEXTS = ("distill.benchmarks", "distill.data")


def check_types() -> None:
    """Check the types of calls in modules of the package that are imported from now on."""
    with_shapes, without = [], []
    for path in sorted((_ROOT / "distill").rglob("*.py")):
        module = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
        if path.stem == "__init__":  # hooks take a package's name for all that is in it
            continue
        text = module.startswith(_ON_TEXTS) and "jaxtyping" not in path.read_text(encoding="utf-8")
        (without if text else with_shapes).append(module)
    install_import_hook(with_shapes, "typechecking.checker")
    beartype_packages(without, conf=BeartypeConf(is_pep484_tower=True, claw_is_pep526=False))
