"""Checked conversion of parsed YAML into frozen dataclasses whose type hints say what is allowed.

>>> @dataclass(frozen=True)
... class Box:
...     width: Annotated[int, Range(1)]
>>> Reader("box.yaml").record(Box, {"width": 3}, "box")
Box(width=3)
>>> Reader("box.yaml").record(Box, {"width": 0}, "box")
Traceback (most recent call last):
sumlib.config.schema.ConfigError: box.yaml: box.width is 0; allowed: at least 1
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A parameter file that cannot be used; the message names the file, the key and what is allowed."""


@dataclass(frozen=True)
class Range:
    """Allowed numbers: low <= value <= high, or low < value <= high if `above`."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        upper = "" if math.isinf(self.high) else f" and at most {_plain(self.high)}"
        return f"{'above' if self.above else 'at least'} {_plain(self.low)}{upper}"


def _plain(number: float) -> str:
    """An integer with all its digits, another number as short as it is exact."""
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


class OneOf(tuple):
    """Allowed values, one by one."""

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self))


MOST = 10_000_000
"""Largest number of steps, images and the like: beyond it is a slip of the finger."""
Count = Annotated[int, Range(1, MOST)]
Whole = Annotated[int, Range(0, MOST)]
Seed = Annotated[int, Range(0, 2**31 - 1)]
Fraction = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, MOST, above=True)]
NonNegative = Annotated[float, Range(0, MOST)]


def shown(value: Any) -> str:
    """`value` as Python writes it, cut where it is long."""
    if isinstance(value, int) and abs(value) > 10**30:
        return f"a number of {value.bit_length() * 3 // 10} digits or more"
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


class Reader:
    """Turns parsed YAML into dataclasses; every error names the file and the key path."""

    def __init__(self, file: str):
        self.file = file

    def fail(self, message: str):
        raise ConfigError(f"{self.file}: {message}")

    def mapping(self, value: Any, where: str, allowed, required=None) -> dict[str, Any]:
        """`value`, with no key outside `allowed` and every key of `required` (default: all allowed)."""
        where = where and where + "."
        if not isinstance(value, Mapping):
            self.fail(
                f"{where.rstrip('.') or 'the file'} must hold keys ({', '.join(allowed)}), not {shown(value)}"
            )
        for key in value:
            if key not in allowed:
                near = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0)
                self.fail(f"unknown key {where}{key}; the nearest known one is {near[0]}")
        for key in allowed if required is None else required:
            if key not in value:
                self.fail(f"missing key {where}{key}")
        return dict(value)

    def record(self, kind: type, value: Any, where: str, **given):
        """A dataclass from a mapping; `given` are fields that the file does not hold."""
        hints = get_type_hints(kind, include_extras=True)
        known = [field for field in fields(kind) if field.name not in given]
        required = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]
        value = self.mapping(value, where, [field.name for field in known], required)
        return kind(
            **given, **{key: self.value(hints[key], item, f"{where}.{key}") for key, item in value.items()}
        )

    def value(self, hint: Any, value: Any, where: str) -> Any:
        """`value` checked against a type hint; lists become tuples, integers become floats where one is
        asked for."""
        origin, args = get_origin(hint), get_args(hint)
        if origin is Annotated:
            value = self.value(args[0], value, where)
            if value not in args[1]:
                near = difflib.get_close_matches(str(value), args[1], 1) if isinstance(args[1], OneOf) else []
                hint = f"; the nearest is {near[0]}" if near else ""
                self.fail(f"{where} is {shown(value)}; allowed: {args[1]}{hint}")
            return value
        if origin in (Union, UnionType):  # X | None
            return (
                None
                if value is None
                else self.value(next(a for a in args if a is not NoneType), value, where)
            )
        if origin is tuple:
            # names must differ, numbers may be repeated
            names = [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
            if not isinstance(value, list) or not value or len(set(names)) < len(names):
                self.fail(f"{where} is {shown(value)}; allowed: a list of different values, not empty")
            return tuple(self.value(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
        if origin is dict:
            value = self.mapping(value, where, get_args(args[0])[1])
            return {key: self.value(args[1], item, f"{where}.{key}") for key, item in value.items()}
        if hint is dict:  # any keys, all of them texts
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                self.fail(f"{where} is {shown(value)}; allowed: named values")
            return dict(value)
        return self.record(hint, value, where) if is_dataclass(hint) else self.scalar(hint, value, where)

    def scalar(self, kind: type, value: Any, where: str) -> Any:
        """A bool, int, float or str of exactly that type; an integer is taken for a float, true for
        neither."""
        if kind is float and type(value) is int and abs(value) <= 2**53:
            value = float(value)
        finite = kind is not float or type(value) is float and math.isfinite(value)
        if type(value) is kind and finite and value != "":
            return value
        hint = "; in YAML write 1.0e-4 for 1e-4" if kind is float and isinstance(value, str) else ""
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        self.fail(f"{where} is {shown(value)}; allowed: {names[kind]}{hint}")
