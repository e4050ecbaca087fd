"""Files that are either whole or not there, and system errors put into words."""

import csv
import errno
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any
from zipfile import BadZipFile

from pwmlunet.errors import PwmlError

reading_headers = RLock()
"""Held while numpy reads an array's header: Python before 3.11.8 may fail where two threads parse at once."""

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EACCES: "permission denied: check whom it belongs to, or choose another place",
    errno.EPERM: "permission denied: check whom it belongs to, or choose another place",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder: choose another folder",
    errno.EEXIST: "there is a file where a folder should be: move it or choose another folder",
    errno.ENOENT: "it does not exist: check the path",
    errno.EISDIR: "it is a folder, not a file: check the path",
}

# The mask can only be read by setting it, for the whole process: once, before there are threads.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


def explain(error: OSError, path: Path, action: str) -> PwmlError:
    """The user's version of a system error met while doing `action` ("write", "read") to `path`."""
    reason = _ADVICE.get(error.errno or 0, error.strerror or str(error))
    return PwmlError(f"cannot {action} {path}: {reason}")


def make_folder(folder: Path) -> Path:
    """The folder, made with its parents where it was missing; PwmlError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, folder, "create") from error
    return folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its ending, that takes its place when the block succeeds.

    A reader sees the old file or the new one, never half of it; a failed block leaves nothing behind.
    """
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=".", suffix=f".{path.name}", dir=path.parent)
    except OSError as error:
        raise explain(error, path, "write") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
    except OSError as error:
        raise explain(error, path, "write") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON; lists of plain values stay on one line, as a person would."""
    with replacing(path) as temporary:
        temporary.write_text(_layout(content, "") + "\n", encoding="utf-8")


def _layout(content: Any, indent: str) -> str:
    inner = indent + "  "
    if isinstance(content, dict) and content:
        rows = [
            f"{inner}{json.dumps(k, ensure_ascii=False)}: {_layout(v, inner)}" for k, v in content.items()
        ]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(content, list | tuple) and any(isinstance(v, dict | list | tuple) for v in content):
        rows = [inner + _layout(v, inner) for v in content]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    return json.dumps(content, allow_nan=False, ensure_ascii=False)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as a table with a header; numbers to six digits; what is None or not there is an empty cell."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file; PwmlError names the file, line and column otherwise."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors begin with a mark
    except OSError as error:
        raise explain(error, path, "read") from error
    except UnicodeDecodeError as error:
        raise PwmlError(f"{path} is not a text file: write it again as JSON") from error
    except json.JSONDecodeError as error:
        raise PwmlError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error


@contextmanager
def reading_arrays(path: Path, what: str) -> Iterator[Mapping[str, Any]]:
    """The arrays of an .npz file by name, which are read as they are asked for.

    Args:
        path: The file.
        what: What it should be, and what to do where it is not: "prior density: train the fold again".

    Raises:
        PwmlError: it is missing or damaged, or the block finds something else in it.
    """
    import numpy as np  # --help does without

    try:
        with reading_headers, path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except FileNotFoundError as error:
        raise PwmlError(f"{path} does not exist, and should be a {what}") from error
    except OSError as error:
        raise explain(error, path, "read") from error
    except (ValueError, KeyError, EOFError, AttributeError, TypeError, BadZipFile, zlib.error) as error:
        raise PwmlError(f"{path} is damaged or no {what}") from error
