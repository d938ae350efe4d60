"""The files that ``--input`` stands for: each once, and what is not read is named."""

import pytest

from pipeline.corpus.inputs import find_inputs
from pipeline.errors import ConfigError
from pipeline.storage.output import open_input


def test_inputs_are_listed_once_sorted_and_named(tmp_path):
    for name in ("b.jsonl", "sub/a.parquet", ".hidden.jsonl", "_tmp/c.jsonl", "notes.pdf", "x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = find_inputs([str(tmp_path), str(tmp_path / "b.jsonl")]).files
    assert [file.url for file in listed] == [f"{tmp_path}/b.jsonl", f"{tmp_path}/sub/a.parquet"]
    globbed = find_inputs([f"{tmp_path}/*/*.parquet"]).files
    assert [file.name for file in globbed] == ["sub/a.parquet"]
    assert [file.name for file in find_inputs([f"{tmp_path}/x"]).files] == ["x"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.jsonl").touch()
    both = [str(tmp_path / "b.jsonl"), str(tmp_path / "other")]
    assert [file.name for file in find_inputs(both).files] == [
        f"{tmp_path}/b.jsonl",
        f"{tmp_path}/other/b.jsonl",
    ]
    with pytest.raises(ConfigError, match="no such file"):
        find_inputs([f"{tmp_path}/*.zip"])
    with pytest.raises(ConfigError, match="--input nothing://x: cannot be listed"):
        find_inputs(["nothing://x"])


def test_a_path_means_itself_whatever_is_in_it(tmp_path):
    name = "a b#1 100% é [x]::?.jsonl"
    (tmp_path / "[in]").mkdir()
    (tmp_path / "[in]" / name).write_bytes(b"content")
    for path in (tmp_path / "[in]", tmp_path / "[in]" / name):
        (file,) = find_inputs([str(path)]).files
        assert (file.name, file.size) == (name, 7)
        with open_input(file.url) as opened:
            assert opened.read() == b"content"


def test_what_is_in_the_output_is_not_input(tmp_path):
    for name in ("a.jsonl", "out/rejects/b.jsonl", "out2/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for output in (f"{tmp_path}/out", f"file://{tmp_path}/out/"):
        listed = find_inputs([str(tmp_path)], output=output).files
        assert [file.name for file in listed] == ["a.jsonl", "out2/c.jsonl"]
    with pytest.raises(ConfigError, match=f"--output {tmp_path}: holds the input .*a.jsonl"):
        find_inputs([f"{tmp_path}/a.jsonl"], output=str(tmp_path))
