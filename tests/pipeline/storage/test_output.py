import pickle
import re
import socket
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.storage.output import OutputDirectory


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    output = OutputDirectory(str(tmp_path / "out"))
    output.write("a/b.json", b'{"n": 1}')
    with pytest.raises(RuntimeError, match="stop"), output.committing("a/b.json") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("stop")
    assert output.read("a/b.json") == b'{"n": 1}'
    assert output.names("a") == ["b.json"] and output.names("_tmp") == []
    with pytest.raises(PipelineError, match=r"cannot write .*/out/a: "):
        output.write("a", b"a directory is in the way")
    assert output.read_all_json("a") == {"b.json": {"n": 1}} and output.read_all_json("none") == {}


def test_a_file_is_on_disk_before_its_name_and_its_name_before_it_counts(tmp_path, monkeypatch):
    """Else a power cut could leave an entry whose shard is empty."""
    synced, open_files = [], Path("/proc/self/fd")

    def fsync(file: int) -> None:
        synced.append(((open_files / str(file)).is_dir(), (tmp_path / "a" / "b").exists()))

    monkeypatch.setattr("os.fsync", fsync)
    output, before = OutputDirectory(str(tmp_path)), len(list(open_files.iterdir()))
    output.write("a/b", b"")
    assert synced == [(False, False), (True, True)]
    assert len(list(open_files.iterdir())) == before


def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    below = OutputDirectory(f"{tmp_path}/file/out")
    for act in (lambda: below.names("entries"), below.check_writable):
        with pytest.raises(PipelineError, match=f"{tmp_path}/file/out: cannot be used: .*Not a"):
            act()
    with pytest.raises(PipelineError, match=r"nothing://x: cannot be used: .*nothing"):
        OutputDirectory("nothing://x")
    good = OutputDirectory(f"{tmp_path}/good")
    good.check_writable()
    assert not list(tmp_path.glob("good/*/*"))


def test_a_damaged_record_is_named(tmp_path):
    output = OutputDirectory(str(tmp_path))
    output.write("entries/a.json", b'{"name": ')
    for act in (
        lambda: output.read_json("entries/a.json"),
        lambda: output.read_all_json("entries"),
    ):
        with pytest.raises(PipelineError, match=f"{tmp_path}/entries/a.json: is damaged: .*start"):
            act()


def test_a_write_error_names_the_file(tmp_path):
    output = OutputDirectory(str(tmp_path))
    message = f"cannot write {tmp_path}/a: .*No space left"
    with pytest.raises(PipelineError, match=message), output.committing("a"):
        raise OSError(28, "No space left on device")


def test_a_node_without_room_for_what_is_uploaded_is_named():
    output = OutputDirectory("memory://full_node/out")
    where = re.escape(f"({tempfile.gettempdir()} on {socket.gethostname()})")
    message = f"cannot write memory://full_node/out/a: .*No space left on device {where}; "
    with pytest.raises(PipelineError, match=message), output.committing("a"):
        raise OSError(28, "No space left on device")


def test_an_output_is_the_same_wherever_it_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = pickle.loads(pickle.dumps(OutputDirectory("out")))
    assert output.url == f"{tmp_path}/out"


@pytest.mark.parametrize("name", ["a*", "a?", "[ab]c"])
def test_a_pattern_is_no_remote_output(name, tmp_path):
    """To remove ``[ab]c/lease`` would have removed ``ac/lease``."""
    with pytest.raises(PipelineError, match=r"makes it a pattern.*choose another name"):
        OutputDirectory(f"memory://patterns/{name}")
    local = OutputDirectory(str(tmp_path / name))
    OutputDirectory(str(tmp_path / "ac")).write("x", b"1")
    local.write("x", b"2")
    assert local.read_all(["x"]) == [b"2"]
    local.remove("x")
    local.write("x", b"3")
    local.remove_files(["x"])
    assert (tmp_path / "ac" / "x").read_bytes() == b"1" and "x" not in local.names()
