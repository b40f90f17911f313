"""Formats of an export and their numbers of bits, checked without importing torch."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import UserError

GROUP_SIZES = (128, 64, 32)  # columns that share a scale, largest first


@dataclass(frozen=True)
class Format:
    """A format that a student can be written in.

    Attributes:
        bits: bits of a weight by what this is called; the first is the default, None: as they are stored.
        package: package that writes it and its remedy, if it is none of distill's own dependencies.
        groups: numbers of bits whose weights share a scale by groups of columns.
        calibrated: whether traces are read to choose the rounding.
    """

    bits: Mapping[int | None, str]
    package: tuple[str, str] | None = None
    groups: tuple[int, ...] = ()
    calibrated: bool = False


FORMATS = {
    "hf": Format({None: "as stored", 16: "bfloat16", 32: "float32"}),
    "gguf": Format({8: "q8_0", 16: "f16", 32: "f32"}),
    "torchao": Format(
        {8: "int8", 4: "int4"}, package=("torchao", 'pip install "distill[export]"'), groups=(4,)
    ),
    "gptq": Format(
        {4: "gptq-int4", 8: "gptq-int8", 3: "gptq-int3", 2: "gptq-int2"},
        package=(
            "gptqmodel",
            'pip install "distill[gptq]", in an environment of its own, because it wants newer versions of '
            "torch, numpy and datasets",
        ),
        groups=(2, 3, 4, 8),
        calibrated=True,
    ),
}


@dataclass(frozen=True)
class ExportSettings:
    """What to write.

    Attributes:
        format: one of `FORMATS`.
        bits: bits of a weight; None: as they are stored.
        group_size: columns that share a scale; None: the largest that fits, or the format has no groups.
    """

    format: str
    bits: int | None
    group_size: int | None = None

    @property
    def kind(self) -> str:
        """Name of the number type, such as `q8_0`."""
        return FORMATS[self.format].bits[self.bits]


def read_settings(values: Mapping[str, Any]) -> ExportSettings:
    """Read `format`, `bits` and `group_size` of the configuration.

    Raises:
        UserError: a value is none of those that there are, or the package that writes the format is missing.
    """
    name, bits, group = values["format"], values["bits"], values["group_size"]
    if name not in FORMATS:
        raise UserError(f"format={name!r} is not one of {', '.join(FORMATS)}")
    found = FORMATS[name]
    known = [count for count in found.bits if count is not None]
    if bits is None:
        bits = next(iter(found.bits))
    elif bits not in known or isinstance(bits, bool):
        raise UserError(
            f"bits={bits!r}: format={name} has {', '.join(map(str, known))} bits a weight, or null for the "
            f"usual ({next(iter(found.bits.values()))})"
        )
    if group is not None and bits not in found.groups:
        raise UserError(f"group_size={group!r}: the weights of format={name} bits={bits} have no groups")
    if group is not None and (isinstance(group, bool) or group not in GROUP_SIZES):
        raise UserError(f"group_size={group!r} is not one of {', '.join(map(str, GROUP_SIZES))}, null")
    if found.package and importlib.util.find_spec(found.package[0]) is None:
        package, remedy = found.package
        raise UserError(f"format={name} needs the package {package}, which is not installed: {remedy}")
    return ExportSettings(name, bits, group)


def group_size(settings: ExportSettings, columns: set[int]) -> int:
    """Columns that share a scale: the configured number, or the largest that divides all matrices' columns.

    Raises:
        UserError: none does.
    """
    sizes = [settings.group_size] if settings.group_size else GROUP_SIZES
    for size in sizes:
        if all(count % size == 0 for count in columns):
            return size
    odd = ", ".join(map(str, sorted(columns)))
    raise UserError(
        f"format={settings.format} bits={settings.bits}: groups of {sizes[-1]} columns do not divide this "
        f"student's matrices ({odd} columns): take format=gguf, or format=torchao bits=8"
    )
