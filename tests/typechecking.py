"""Type checker that jaxtyping applies to the package in tests; it accepts an int for a float."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
