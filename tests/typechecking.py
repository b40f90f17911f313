"""Type checks of calls in the package, from the import of this module on: shapes of tensors by jaxtyping, and
all else by beartype.

jaxtyping binds the arguments of every call, which takes far longer than beartype's check. Modules on texts,
which have many calls and no shapes, are therefore checked by beartype alone."""

from pathlib import Path

from beartype import BeartypeConf, beartype
from beartype.claw import beartype_packages
from jaxtyping import install_import_hook

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # accepts an int for a float

_ROOT = Path(__file__).resolve().parents[1]
_ON_TEXTS = ("distill.benchmarks", "distill.data")


def _check_types() -> None:
    with_shapes, without = [], []
    for path in sorted((_ROOT / "distill").rglob("*.py")):
        module = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
        if path.stem == "__init__":  # hooks take a package's name for all that is in it
            continue
        text = module.startswith(_ON_TEXTS) and "jaxtyping" not in path.read_text(encoding="utf-8")
        (without if text else with_shapes).append(module)
    install_import_hook(with_shapes, "typechecking.checker")
    beartype_packages(without, conf=BeartypeConf(is_pep484_tower=True, claw_is_pep526=False))


_check_types()
