"""What every command shares: errors in a sentence, exit codes, options of the same name."""

import argparse
import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pwmlunet import __version__
from pwmlunet.errors import PwmlError

Parser = argparse.ArgumentParser
Command = Callable[[Sequence[str] | None], None]


class _LinesBesideBars(logging.StreamHandler[TextIO]):
    """Writes to stderr, on lines of their own where a progress bar is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Takes the bars away while the line is written."""
        from tqdm import tqdm  # --help does without

        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def command(function: Callable[[argparse.Namespace], None]) -> Callable[[Callable[[], Parser]], Command]:
    """Pairs a parser with what it runs; a PwmlError becomes its sentence and exit code 2.

    Ctrl-C and SIGTERM leave nothing half-written behind: exit code 130.
    """

    def with_parser(parser: Callable[[], Parser]) -> Command:
        @functools.wraps(parser)
        def main(arguments: Sequence[str] | None = None) -> None:
            parsed = parser().parse_args(arguments)
            # Torch's threads wait asleep: spinning, as they do by default, triples a prediction on a busy machine.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            lines = _LinesBesideBars()
            lines.setLevel(logging.INFO)  # a training's log file takes more
            logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[lines], force=True)
            logging.getLogger("pwmlunet").setLevel(logging.INFO)
            before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's Ctrl-C
            try:
                function(parsed)
            except PwmlError as error:
                say(f"error: {error}", file=sys.stderr)
                sys.exit(2)
            except KeyboardInterrupt:
                say("stopped", file=sys.stderr)
                sys.exit(130)
            finally:
                signal.signal(signal.SIGTERM, before)

        return main

    return with_parser


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Ends the command with exit code 130 where a signal stopped a training that was saved."""
    from pwmlunet.training.interruption import TrainingStoppedError

    try:
        yield
    except TrainingStoppedError as error:
        say(f"{error}; the same command goes on", file=sys.stderr)
        sys.exit(130)


say = print  # the closing lines of commands are what a user reads


def new_parser(name: str, description: str) -> Parser:
    """A parser with --version and where to read more."""
    parser = Parser(
        prog=name,
        description=description,
        allow_abbrev=False,
        epilog="See documentation/commands.md for examples.",
    )
    parser.add_argument("--version", action="version", version=f"pwmlunet {__version__}")
    return parser


def add_device(parser: Parser) -> None:
    """Adds --device."""
    parser.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)"
    )


def add_pretrained(parser: Parser) -> None:
    """Adds --pretrained, a path that means the same in every folder."""
    parser.add_argument(
        "--pretrained",
        type=lambda text: str(Path(text).expanduser().absolute()),
        metavar="FILE",
        help="weights to begin from, such as weights.pt of another run or those of a torchvision network",
    )


def add_settings(parser: Parser, example: str) -> None:
    """Adds --set, for any setting of a JSON file."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=f"any setting of {example}")  # fmt: skip


def overlay(values: dict[str, Any], setting: str) -> None:
    """Lays KEY=VALUE of --set over nested values, the value being JSON or text."""
    key, separator, text = setting.partition("=")
    if not separator:
        raise PwmlError(f"--set {setting}: write KEY=VALUE, such as augmentation.noise=0.1")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    try:
        lay(values, key, value)
    except PwmlError as error:
        raise PwmlError(f"--set {setting}: {error}") from None


def lay(values: dict[str, Any], key: str, value: Any) -> None:
    """Lays one value over nested ones; a key may be augmentation.noise."""
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise PwmlError(f"{parent!r} holds no further settings")
    values[last] = value


def count_cases(n: int) -> str:
    """1 case, 2 cases."""
    return f"{n} case{'s'[: n != 1]}"
