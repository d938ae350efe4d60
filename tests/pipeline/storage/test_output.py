import pickle

import pytest

from pipeline.errors import ConfigError, PipelineError
from pipeline.storage.listing import list_inputs
from pipeline.storage.output import OutputDirectory, open_input


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


def test_inputs_are_listed_once_sorted_and_named(tmp_path):
    for name in ("b.jsonl", "sub/a.parquet", ".hidden.jsonl", "_tmp/c.jsonl", "notes.pdf", "x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    suffixes = (".jsonl", ".parquet")
    listed = list_inputs([str(tmp_path), str(tmp_path / "b.jsonl")], suffixes=suffixes)
    assert [file.url for file in listed] == [f"{tmp_path}/b.jsonl", f"{tmp_path}/sub/a.parquet"]
    globbed = list_inputs([f"{tmp_path}/*/*.parquet"], suffixes=suffixes)
    assert [file.name for file in globbed] == ["sub/a.parquet"]
    assert [file.name for file in list_inputs([f"{tmp_path}/x"], suffixes=suffixes)] == ["x"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.jsonl").touch()
    both = [str(tmp_path / "b.jsonl"), str(tmp_path / "other")]
    assert [file.name for file in list_inputs(both, suffixes=suffixes)] == [
        f"{tmp_path}/b.jsonl",
        f"{tmp_path}/other/b.jsonl",
    ]
    with pytest.raises(ConfigError, match="no such file"):
        list_inputs([f"{tmp_path}/*.zip"], suffixes=suffixes)
    with pytest.raises(ConfigError, match="--input nothing://x: cannot be listed"):
        list_inputs(["nothing://x"], suffixes=suffixes)


def test_a_path_means_itself_whatever_is_in_it(tmp_path):
    name = "a b#1 100% é [x]::?.jsonl"
    (tmp_path / "[in]").mkdir()
    (tmp_path / "[in]" / name).write_bytes(b"content")
    for path in (tmp_path / "[in]", tmp_path / "[in]" / name):
        (file,) = list_inputs([str(path)], suffixes=(".jsonl",))
        assert (file.name, file.size) == (name, 7)
        with open_input(file.url) as opened:
            assert opened.read() == b"content"
    # A link to nothing is a file that cannot be read, and told when it is.
    (tmp_path / "[in]" / name).unlink()
    (tmp_path / "[in]" / name).symlink_to(tmp_path / "nothing")
    assert len(list_inputs([str(tmp_path)], suffixes=(".jsonl",))) == 1


def test_what_is_in_the_output_is_not_input(tmp_path):
    for name in ("a.jsonl", "out/rejects/b.jsonl", "out2/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for output in (f"{tmp_path}/out", f"file://{tmp_path}/out/"):
        listed = list_inputs([str(tmp_path)], suffixes=(".jsonl",), output=output)
        assert [file.name for file in listed] == ["a.jsonl", "out2/c.jsonl"]
    with pytest.raises(ConfigError, match=f"--output {tmp_path}: holds the input .*a.jsonl"):
        list_inputs([f"{tmp_path}/a.jsonl"], suffixes=(".jsonl",), output=str(tmp_path))


def test_an_output_is_the_same_wherever_it_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = pickle.loads(pickle.dumps(OutputDirectory("out")))
    assert output.url == f"{tmp_path}/out"
