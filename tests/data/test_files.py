import errno
import json
import os
from pathlib import Path

import pytest

from pwmlunet.errors import PwmlError
from pwmlunet.files import make_folder, read_json, replacing, write_csv, write_json

needs_device_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def test_replacing_puts_the_new_file_in_place_with_usual_rights(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.json"
    with replacing(path) as temporary:
        assert temporary.name.endswith("plan.json")
        assert temporary.parent == path.parent
        temporary.write_text("whole")
        assert not path.exists()
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.read_text() == "whole"
    assert path.stat().st_mode == ordinary.stat().st_mode
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, PwmlError, OSError])
def test_replacing_leaves_the_old_file_and_nothing_else_after_a_failure(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    with pytest.raises(PwmlError if failure is OSError else failure), replacing(path) as temporary:
        temporary.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


@needs_device_full
def test_a_full_disk_is_put_into_words(tmp_path: Path) -> None:
    with pytest.raises(PwmlError) as caught, replacing(tmp_path / "x.txt"), Path("/dev/full").open("w") as f:
        f.write("much")
        f.flush()
    expected = "x.txt: the disk is full: free some space and run the same command again"
    assert str(caught.value) == f"cannot write {tmp_path}/{expected}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "permission denied: check whom it belongs to, or choose another place"),
        (errno.EROFS, "the file system is read-only: choose another folder"),
        (errno.EDQUOT, "the disk quota is used up: free some space and run the same command again"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_system_errors_are_put_into_words(tmp_path: Path, code: int, words: str) -> None:
    with pytest.raises(PwmlError) as caught, replacing(tmp_path / "x"):
        raise OSError(code, os.strerror(code))
    assert str(caught.value) == f"cannot write {tmp_path}/x: {words}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(PwmlError, match="permission denied"):
        write_json(tmp_path / "x.json", {})


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PwmlError, match=r"cannot create .*file: there is a file where a folder should be"):
        make_folder(tmp_path / "file")
    with pytest.raises(PwmlError, match=r"cannot create .*inner: a part of this path is a file"):
        write_json(tmp_path / "file" / "inner" / "x.json", {})


def test_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(PwmlError, match=r"cannot write .*x\.json: it is a folder"):
        write_json(tmp_path / "x.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_writing_leaves_the_process_mask_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # it is one for all threads: whoever sets it to look at it opens the others' files to everybody
    monkeypatch.delattr(os, "umask")
    write_json(tmp_path / "x.json", {})


def test_json_is_laid_out_as_a_person_would_and_read_back(tmp_path: Path) -> None:
    content = {"a": [1.5, 2], "b": {"c": "é", "d": []}, "e": [{"f": None}, [1, 2]], "g": {}}
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert '  "a": [1.5, 2],\n' in text
    assert json.loads(text) == content == read_json(tmp_path / "x.json")


def test_not_a_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_json_by_a_windows_editor_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1,\n "b" 2}', "x.json is not valid JSON: Expecting ':' delimiter at line 2, column 6"),
        (b"\xff\xfe{", "x.json is not a text file: write it again as JSON"),
        (None, "cannot read {folder}/x.json: it does not exist: check the path"),
    ],
)
def test_unreadable_json_is_told(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(PwmlError) as caught:
        read_json(tmp_path / "x.json")
    assert words.format(folder=tmp_path) in str(caught.value)


def test_several_problems_are_one_error_and_one_is_its_own_sentence() -> None:
    assert str(PwmlError.listing("two things", ["a", "b"])) == "two things (2):\n  - a\n  - b"
    assert str(PwmlError.listing("one thing", ["a"])) == "a"


@pytest.mark.parametrize(
    ("problems", "text"),
    [
        (["a"], "a (the other cases are done)"),
        (["a", "b"], "2 of 3 cases failed, the others are done (2):\n  - a\n  - b"),
        (["a", "b", "c"], "all cases failed (3):\n  - a\n  - b\n  - c"),
    ],
)
def test_an_error_of_some_cases_says_that_the_others_are_done(problems, text):
    assert str(PwmlError.of_some(problems, 3, "cases")) == text
    assert str(PwmlError.of_some(["a"], 1, "cases")) == "a"


def test_a_table_has_a_header_and_empty_cells(tmp_path):
    write_csv(tmp_path / "a.csv", ["case", "mm"], [{"case": "a, b", "mm": None}, {"case": "ü", "mm": 2 / 3}])
    text = (tmp_path / "a.csv").read_text(encoding="utf-8")
    assert text.splitlines() == ["case,mm", '"a, b",', "ü,0.666667"]
