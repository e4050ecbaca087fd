import logging
import os
import re
import signal
import time

import pytest
from tqdm import tqdm

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


def test_a_log_line_and_a_progress_bar_do_not_share_a_line(capsys):
    def work_and_warn(_):
        for _ in tqdm(range(2), "training", mininterval=0):
            logging.getLogger("pwmlunet.training").warning("the loss is high")

    @command(work_and_warn)
    def main():
        return new_parser("pwml_test", "Works.")

    main([])
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    assert lines.count("the loss is high") == 2 and any(line.startswith("training: ") for line in lines)
