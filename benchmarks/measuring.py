"""What a command costs: wall and CPU seconds, and the memory of all its processes together (Linux)."""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

_PAGE_GB = os.sysconf("SC_PAGE_SIZE") / 1e9
_SAMPLE_SECONDS = 0.1  # and more often in the first second, which is all that some commands take
_SHARE_SECONDS = 1.0  # between two looks at who shares what: each stops a process for some milliseconds


@dataclass(frozen=True)
class Measurement:
    """The cost of one command."""

    wall_seconds: float
    cpu_seconds: float
    """User and system time of the process and all its children."""
    peak_gb: float
    """Highest sum over the process tree; memory that processes share counts once."""
    peak_processes: int


def measure(command: Sequence[str], environment: Mapping[str, str]) -> Measurement:
    """The cost of a command that must succeed; its output is shown only where it fails."""
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:  # fmt: skip
        watcher = _Watcher(process.pid)
        watcher.start()
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    watcher.stop()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output.decode()[-4000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return Measurement(round(wall, 3), round(cpu, 3), round(watcher.peak_gb, 3), watcher.peak_processes)


class _Watcher(Thread):
    """Samples the memory of a process tree until it is stopped."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.done = Event()
        self.peak_gb, self.peak_processes = 0.0, 1

    def run(self) -> None:
        start, pause = time.perf_counter(), 0.0
        while not self.done.wait(pause):
            processes = list(_tree(self.root))
            alone = len(processes) == 1
            size_gb = _resident_gb(self.root) if alone else sum(_share_gb(p) for p in processes)
            self.peak_gb = max(self.peak_gb, size_gb)
            self.peak_processes = max(self.peak_processes, len(processes))
            often = min(_SAMPLE_SECONDS, 0.005 + (time.perf_counter() - start) / 10)
            pause = often if alone else _SHARE_SECONDS

    def stop(self) -> None:
        self.done.set()
        self.join()


def _tree(root: int) -> Iterator[int]:
    """A process and all below it."""
    yield root
    try:
        tasks = list(Path(f"/proc/{root}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has just ended
        return
    for child in children:
        yield from _tree(child)


def _resident_gb(process: int) -> float:
    """Memory of a process, shared or not."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_GB
    except (OSError, IndexError):  # it has just ended
        return 0.0


def _share_gb(process: int) -> float:
    """Memory of a process, each page divided by the number of processes that share it.

    Forked processes share their parent's pages until they write to them: to sum their resident memory
    would count it many times.
    """
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e9 for line in text.splitlines() if line.startswith("Pss:")), 0.0)  # fmt: skip
