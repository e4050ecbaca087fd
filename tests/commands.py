"""The commands that the package installs, by the name they have after `pwml_`."""

import importlib
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
ENTRY_POINTS: dict[str, str] = {
    name.removeprefix("pwml_"): place for name, place in _PROJECT["project"]["scripts"].items()
}


def entry_point(name: str) -> Callable[..., Any]:
    """The function that a command runs."""
    module, function = ENTRY_POINTS[name].split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
