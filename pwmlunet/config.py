"""Config: frozen dataclasses that are read from JSON strictly and written to it."""

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from pwmlunet.errors import PwmlError
from pwmlunet.files import read_json, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    """A frozen dataclass that a person can read and edit as JSON.

    Reading is strict: an unknown key, a missing key, a wrong type or a value that `problems` objects to
    is a PwmlError that names the place. A class with `variants` is read by the "type" key in its JSON.
    """

    @classmethod
    def variants(cls) -> Mapping[str, type[Self]]:
        """The concrete classes by the name they have in JSON; empty for a class that is its own."""
        return {}

    def problems(self) -> Iterator[str]:
        """Sentences about values that are of the right type and still wrong."""
        yield from ()

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Self:
        """The config described by parsed JSON; `where` (a file, a key) begins each complaint."""
        if not isinstance(values, Mapping):
            raise PwmlError(f"{where}: expected an object with named values, found {values!r}")
        if variants := cls.variants():
            if "type" not in values:
                raise PwmlError(f'{where}: the key "type" is missing (one of {join(variants)})')
            kind = str(values["type"])
            if kind not in variants:
                raise PwmlError(f'{where}: "type" must be one of {join(variants)}, not {kind!r}')
            return variants[kind]._build({k: v for k, v in values.items() if k != "type"}, where)
        return cls._build(values, where)

    @classmethod
    def _build(cls, values: Mapping[str, Any], where: str) -> Self:
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise PwmlError(f"{where}: unknown key {key!r}{did_you_mean(key, fields)}")
        for name, field in fields.items():
            if name not in values and not _has_default(field):
                raise PwmlError(f"{where}: the key {name!r} is missing")
        hints = get_type_hints(cls)
        config = cls(**{k: _convert(v, hints[k], f"{where}: {k}") for k, v in values.items()})
        for problem in config.problems():
            raise PwmlError(f"{where}: {problem}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; `from_dict` of it equals this config."""
        values = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        kind = next((k for k, v in type(self).variants().items() if v is type(self)), None)
        return {"type": kind, **values} if kind else values

    @classmethod
    def read(cls, path: Path) -> Self:
        """The config in a JSON file."""
        return cls.from_dict(read_json(path), str(path))

    def write(self, path: Path) -> None:
        """Writes the config as JSON, whole or not at all."""
        write_json(path, self.to_dict())


def join(names: Iterable[object]) -> str:
    """Names in a row for a message: a, b, c."""
    return ", ".join(str(name) for name in names)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion to hang onto a message about an unknown name; empty when nothing is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {join(known)})"


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` from JSON as the annotated type, or a PwmlError that says what was expected."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments:
            raise PwmlError(f"{where} must be one of {join(arguments)}, not {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(value, arguments, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise PwmlError(f"{where} must be an object with named values, not {value!r}")
        return {k: _convert(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, Config):
        return hint.from_dict(value, where)
    return _convert_scalar(value, hint, where)


def _convert_union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    for option in rest[:-1]:
        try:
            return _convert(value, option, where)
        except PwmlError:
            continue
    return _convert(value, rest[-1], where)


def _convert_tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise PwmlError(f"{where} must be a list, not {value!r}")
    if arguments[-1] is Ellipsis:
        hints = [arguments[0]] * len(value)
    else:
        hints = list(arguments)
        if len(hints) != len(value):
            raise PwmlError(f"{where} must have {len(hints)} entries, not {len(value)}: {value!r}")
    return tuple(_convert(v, h, f"{where}[{i}]") for i, (v, h) in enumerate(zip(value, hints, strict=True)))


def _convert_scalar(value: Any, hint: type, where: str) -> Any:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number and math.isfinite(value):
        return float(value)
    if hint is int and is_number and float(value).is_integer():
        return int(value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (str, Path) and isinstance(value, str):
        return hint(value)
    raise PwmlError(f"{where} must be {names.get(hint, hint)}, not {value!r}")
