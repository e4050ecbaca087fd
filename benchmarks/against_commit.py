"""Times the commands of this working tree against those of another commit.

    python benchmarks/against_commit.py [COMMIT] [--repetitions 3] [--stages plan predict]

The other commit (default: HEAD) is checked out as a git worktree for as long as the measurement takes, and
runs in this environment. See benchmarks/README.md.
"""

import argparse
import subprocess
from pathlib import Path

from against_nnunet import add_options
from stages import HERE, compare, make_inputs, ours


def main() -> None:
    """Checks the commit out, measures, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", nargs="?", default="HEAD")
    add_options(parser)
    arguments = parser.parse_args()
    inputs = make_inputs(
        arguments.folder,
        n_training=arguments.cases,
        n_predicted=arguments.predicted,
        shape_zyx=arguments.shape,
    )
    code: Path = arguments.folder.resolve() / "commit"
    log = arguments.log or arguments.folder / "measurements.jsonl"
    _git("worktree", "add", "--detach", "--force", str(code), arguments.commit)
    try:
        tools = [
            ours(arguments.folder, inputs),
            ours(arguments.folder, inputs, name=arguments.commit.replace("/", "-"), code=code),
        ]
        print(compare(tools, log, stages=arguments.stages, repetitions=arguments.repetitions))
    finally:
        _git("worktree", "remove", "--force", str(code))


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(HERE), *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    main()
