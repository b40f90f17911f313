"""The type checker that jaxtyping applies to the package while tests run: an int will do for a float."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
