import os
import signal
import time

import pytest

from pwmlunet.cli.command import command, new_parser
from pwmlunet.files import replacing


def test_a_terminated_command_leaves_nothing_half_written(tmp_path, capsys):
    @command(lambda _: write_half_and_be_terminated(tmp_path / "case.nii.gz"))
    def main():
        return new_parser("pwml_test", "Writes.")

    def not_taken(number, frame):
        raise AssertionError("the command does not take SIGTERM")

    before = signal.signal(signal.SIGTERM, not_taken)
    try:
        with pytest.raises(SystemExit) as caught:
            main([])
        assert signal.getsignal(signal.SIGTERM) is not_taken  # as it was
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 130 and "stopped" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def write_half_and_be_terminated(path):
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
