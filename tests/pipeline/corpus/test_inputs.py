"""The files that ``--input`` stands for: each once, and what is not read is named."""

import bz2
import gzip
import io
import json
import os

import datasets
import fsspec
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.corpus.documents import Columns, read_split
from pipeline.corpus.formats import file_format
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import plan_file
from pipeline.errors import BadFileError, ConfigError
from pipeline.storage.checked_json import parse_json, to_json
from pipeline.storage.places import open_input


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


def fill(directory, files):
    """Write files; text becomes a line of JSON, None an empty file."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = json.dumps({"text": content}).encode() + b"\n"
        path.write_bytes(content or b"")


def read(pattern, columns=Columns()):  # noqa: B008
    """The texts of all files, by name."""
    texts = {}
    for file in find_inputs([str(pattern)]).files:
        for split in plan_file(file, file_format(file, "auto"), 1 << 20).splits:
            texts[file.name] = [record.text.decode() for record in read_split(split, columns, 99)]
    return texts


def unread(pattern):
    """Why files are not read, by path below the directory."""
    found = find_inputs([str(pattern)]).unread
    return {path.removeprefix(f"{pattern}/"): reason for path, reason in found.items()}


def parquet(*texts):
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file)
    return file.getvalue()


def test_names_in_use_are_known_in_either_case(tmp_path):
    line = b'{"text": "x"}\n'
    fill(
        tmp_path,
        {"a.JSONL": "x", "b.jl.BZ2": bz2.compress(line), "c.ndjson.gzip": gzip.compress(line)},
    )
    fill(tmp_path, {"d.Parquet": parquet("x"), "e.json.GZ": gzip.compress(line)})
    arrow = io.BytesIO()
    pyarrow.feather.write_feather(pa.table({"text": ["x"]}), arrow)
    fill(tmp_path, {"f.parq": parquet("x"), "g.pq": parquet("x"), "h.ipc": arrow.getvalue()})
    fill(tmp_path, {"i.feather": arrow.getvalue()})
    assert list(read(tmp_path).values()) == [["x"]] * 9


def test_the_first_feather_format_is_told(tmp_path):
    fill(tmp_path, {"a.feather": b"FEA1" + bytes(100) + b"FEA1"})
    with pytest.raises(BadFileError, match="is a Feather file of version 1"):
        read(tmp_path)


def test_a_name_without_an_ending_is_told_by_its_content(tmp_path):
    fill(
        tmp_path,
        {"part-00000": "a", "part-00001": gzip.compress(b'{"text": "b"}'), "x": parquet("c")},
    )
    fill(tmp_path, {"part-00002.c000": "d", "_SUCCESS": None, "README": b"about", "e.exe": b"MZ"})
    expected = {"part-00000": ["a"], "part-00001": ["b"], "part-00002.c000": ["d"], "x": ["c"]}
    assert read(tmp_path) == expected
    assert unread(tmp_path) == {
        "_SUCCESS": "hidden",
        "README": "in no known format",
        "e.exe": "in no known format",
    }


def test_a_pipe_is_no_input(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"a.jsonl: no regular file: a pipe or device"):
        find_inputs([f"{tmp_path}/a.jsonl"])
    fill(tmp_path, {"b.jsonl": "x"})
    assert unread(tmp_path) == {"a.jsonl": "no regular file"}


def test_linked_directories_are_followed_once(tmp_path):
    fill(tmp_path, {"real/r.jsonl": "r", "c/own.jsonl": "own"})
    links = {"linked": "../real", "again": "../real", "loop": ".", "up": "..", "gone.jsonl": "no"}
    for name, target in links.items():
        (tmp_path / "c" / name).symlink_to(target)
    assert read(tmp_path / "c") == {"again/r.jsonl": ["r"], "own.jsonl": ["own"]}
    assert unread(tmp_path / "c") == {
        "gone.jsonl": "a link to nothing",
        "linked": "a link to a directory that is read already",
        "loop": "a link to a directory that is read already",
        "up/c": "a link to a directory that is read already",
        "up/real": "a link to a directory that is read already",
    }


def test_inputs_that_lead_to_one_file_read_it_once(tmp_path):
    fill(tmp_path, {"real/r.jsonl": "r", "c/own.jsonl": "own"})
    (tmp_path / "c/linked").symlink_to("../real")
    (tmp_path / "c/link.jsonl").symlink_to("../real/r.jsonl")
    inputs = find_inputs([f"{tmp_path}/real", f"{tmp_path}/c", f"{tmp_path}/c/linked/r.jsonl"])
    assert [file.name for file in inputs.files] == ["own.jsonl", "r.jsonl"]
    assert set(inputs.unread.values()) == {f"the same file as {tmp_path}/real/r.jsonl"}
    assert set(find_inputs([f"{tmp_path}/real"]).unread) == set()


def test_a_copy_of_a_repository_is_read_as_the_hub_is(tmp_path):
    about = {"README.md": b"---\nlicense: mit\n---\n", "LICENSE.txt": b"mit", "notes.txt": b"x"}
    fill(tmp_path, about | {"data/train.parquet": parquet("a"), "dataset_infos.json": "no"})
    assert list(read(tmp_path)) == ["data/train.parquet"]
    assert set(unread(tmp_path).values()) == {"about the data"}
    assert len(unread(tmp_path)) == 4


def test_other_splits_of_a_copied_repository_are_not_trained_on(tmp_path):
    names = ("train-00000-of-00001", "test-00000-of-00001", "validation", "plain", "training_dev")
    fill(tmp_path, {f"test/data/{name}.parquet": parquet(name) for name in names})
    assert len(read(tmp_path / "test")) == 5  # nothing says that these names tell splits
    fill(tmp_path, {"test/README.md": b"---\nlicense: mit\n---\n"})
    here = ["data/plain.parquet", "data/train-00000-of-00001.parquet", "data/training_dev.parquet"]
    assert list(read(tmp_path / "test")) == here
    others = {"data/test-00000-of-00001.parquet", "data/validation.parquet"}
    assert {p for p, why in unread(tmp_path / "test").items() if why.startswith("in an")} == others
    assert len(read(tmp_path / "test/data/*.parquet")) == 5  # who names files means them
    fill(tmp_path, {"only/.gitattributes": b"", "only/test.parquet": parquet("a")})
    assert list(read(tmp_path / "only")) == ["test.parquet"]


def test_the_cache_of_the_hub_is_read_by_the_names_of_its_snapshot(tmp_path):
    """There, files lie by their hashes, which tell no split and no ending."""
    cache = tmp_path / "datasets--owner--name"
    data = {"aa1": parquet("train"), "aa2": parquet("test"), "aa3": b'{"text": "about"}\n'}
    fill(cache, {f"blobs/{key}": content for key, content in data.items()})
    (cache / "snapshots/abc/data").mkdir(parents=True)
    for key, name in (("aa1", "train-0.parquet"), ("aa2", "test-0.parquet")):
        (cache / "snapshots/abc/data" / name).symlink_to(f"../../../blobs/{key}")
    (cache / "snapshots/abc/dataset_infos.json").symlink_to("../../blobs/aa3")
    for root in (tmp_path, cache, cache / "snapshots/abc"):
        assert list(read(root).values()) == [["train"]]
    assert unread(cache)["blobs"].startswith("the files of a cache of the hub")
    (cache / "snapshots/def").mkdir()
    (cache / "snapshots/def/train-0.parquet").symlink_to("../../blobs/aa2")
    with pytest.raises(ConfigError, match=r"holds the snapshots .* name the directory of one"):
        find_inputs([str(tmp_path)])
    assert list(read(cache / "snapshots/def").values()) == [["test"]]


def test_a_copy_of_the_cache_of_the_hub_is_read_once(tmp_path):
    """On stores, which have no links, its blobs are documents once more; a glob lists them, too."""
    cache = "copied/datasets--owner--name"
    for name in ("blobs/aa", "snapshots/abc/train.jsonl"):
        fill(tmp_path, {f"{cache}/{name}": b'{"text": "train"}\n'})
        fsspec.filesystem("memory").pipe_file(f"/{cache}/{name}", b'{"text": "train"}\n')
    for place in ("memory://copied", "memory://copied/**", f"{tmp_path}/copied/**"):
        inputs = find_inputs([place])
        assert [file.name.rpartition("/")[2] for file in inputs.files] == ["train.jsonl"]
        (why,) = (why for path, why in inputs.unread.items() if path.endswith("/blobs"))
        assert why.startswith("the files of a cache of the hub")
    assert len(find_inputs([f"memory://{cache}/blobs/*"]).files) == 1


def test_documents_about_data_are_no_text_but_a_directory_of_texts_is(tmp_path):
    fill(tmp_path, {"README.md": b"about", "guide.md": b"a guide"})
    assert list(read(tmp_path)) == ["README.md", "guide.md"]
    fill(tmp_path, {"a.jsonl": "x"})
    assert list(read(tmp_path)) == ["a.jsonl", "guide.md"]
    assert unread(tmp_path) == {"README.md": "about the data"}


def test_saved_datasets(tmp_path):
    one = datasets.Dataset.from_dict({"text": ["a", "b"]})
    one.save_to_disk(tmp_path / "one")
    fill(tmp_path / "one", {"cache-123.arrow": b"x"})
    assert read(tmp_path / "one") == {"data-00000-of-00001.arrow": ["a", "b"]}
    assert unread(tmp_path / "one")["cache-123.arrow"].startswith("not in the state.json")
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "both")
    assert list(read(tmp_path / "both")) == ["train/data-00000-of-00001.arrow"]
    assert "in another split than train" in unread(tmp_path / "both").values()
    datasets.DatasetDict({"a": one, "b": one}).save_to_disk(tmp_path / "neither")
    with pytest.raises(ConfigError, match="holds the splits a, b and none called train"):
        find_inputs([str(tmp_path / "neither")])


def test_the_cache_of_the_datasets_library(tmp_path):
    sources = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test", "other")}
    for name, path in sources.items():
        (tmp_path / path).write_text(json.dumps({"text": name}) + "\n")

    def built(*splits: str) -> str:
        cache = tmp_path / "-".join(splits)
        files = {name: sources[name] for name in splits}
        made = datasets.load_dataset("json", data_files=files, cache_dir=str(cache))
        made[splits[0]].map(lambda record: {"text": record["text"] + " mapped"})
        return str(cache)

    both = built("train", "test")
    assert list(read(both).values()) == [["train"]]
    reasons = list(unread(both).values())
    assert reasons.count("in another split than train") == 1
    assert reasons.count("a result that the datasets library keeps") == 1
    assert list(read(built("test")).values()) == [["test"]]
    with pytest.raises(ConfigError, match="holds the splits other, test and none called train"):
        find_inputs([built("test", "other")])


def test_large_splits_in_the_cache_of_the_datasets_library(tmp_path):
    """Their files have numbers, which are no splits. A build that was killed is no dataset."""
    train = [f"my-data-train-0000{n}-of-00002.arrow" for n in (0, 1)]
    fill(tmp_path / "hash", dict.fromkeys([*train, "my-data-test.arrow"], b"x"))
    (tmp_path / "hash/dataset_info.json").write_text('{"splits": {"train": {}, "test": {}}}')
    fill(tmp_path, {f"hash.incomplete/{train[0]}": b"x"})
    listed = find_inputs([str(tmp_path)]).files
    assert [file.name for file in listed] == [f"hash/{name}" for name in train]


def test_held_out_documents_are_not_mixed_with_chunks(tmp_path):
    fill(tmp_path, {"x.chunk.00.jsonl": "a", "x.chunk.01.jsonl": "b", "x.val.jsonl": "v"})
    for pattern in (tmp_path, tmp_path / "*.jsonl"):
        with pytest.raises(ConfigError, match=r"x.val.jsonl is held out for validation"):
            find_inputs([str(pattern)])
    with pytest.raises(ConfigError, match="is held out"):
        find_inputs([str(tmp_path / "x.val.jsonl"), str(tmp_path / "x.chunk.00.jsonl")])
    assert list(read(tmp_path / "x.val.jsonl")) == ["x.val.jsonl"]
    assert len(read(tmp_path / "x.chunk.*")) == 2


def test_directories_and_structs_name_fields(tmp_path):
    fill(tmp_path, {"lang=e%20n/kind=__HIVE_DEFAULT_PARTITION__/a.jsonl": "x"})
    pq.write_table(
        pa.table({"content": [{"text": "y"}], "meta": [{"a": {"b": 5}}]}), tmp_path / "b.parquet"
    )
    (tmp_path / "c.jsonl").write_text('{"content": {"text": "z"}, "meta": {"a": {"b": 6}}}\n')
    (first, second, third) = sorted(find_inputs([str(tmp_path)]).files, key=lambda f: f.name[0])

    def documents(file, columns):
        (split,) = plan_file(file, file_format(file, "auto"), 1 << 20).splits
        return [(record.text, record.metadata) for record in read_split(split, columns, 99)]

    nested = Columns("content.text", metadata=("meta.a.b",))
    assert documents(first, nested) == [(b"y", ("5",))]
    assert documents(second, nested) == [(b"z", ("6",))]
    assert documents(third, Columns(metadata=("lang", "kind"))) == [(b"x", ("e n", None))]
    fill(tmp_path / "other", {"text=1/a.jsonl": "of the record"})
    assert read(tmp_path / "other") == {"text=1/a.jsonl": ["of the record"]}


def test_what_is_not_read_is_counted_and_named(tmp_path):
    fill(tmp_path, {"a.jsonl": "x", **{f"{i}.bin": b"x" for i in range(5)}})
    inputs = find_inputs([str(tmp_path)])
    console = Console(file=io.StringIO(), width=1000)
    inputs.print_unread(console)
    names = ", ".join(f"{tmp_path}/{i}.bin" for i in range(3))
    assert console.file.getvalue() == f"not read: 5 files, in no known format: {names}, …\n"
    assert inputs.unread_record()["count"] == 5
    assert inputs.unread_record()["files"][0] == {
        "path": f"{tmp_path}/0.bin",
        "reason": "in no known format",
    }


def test_names_that_are_no_utf8_can_be_read_and_recorded(tmp_path):
    path = os.fsencode(tmp_path) + b"/a\xff.jsonl"
    with open(path, "wb") as file:  # noqa: PTH123 (a name in bytes)
        file.write(b'{"text": "x"}\n')
    (file,) = find_inputs([str(tmp_path)]).files
    assert file.name == "a\\xff.jsonl"
    assert parse_json(to_json({"url": file.url})) == {"url": os.fsdecode(path)}
    (split,) = plan_file(file, "jsonl", 100).splits
    (document,) = read_split(split, Columns(), 99)
    assert document.sample_id.encode() == b"a\\xff.jsonl#0"


def test_an_export_is_read_without_its_records(tmp_path):
    record = '{"stage": "export"}'
    fill(tmp_path, {"data/train-0.parquet": parquet("a"), "README.md": b"---\n---\n"})
    for name in ("run.json", "entries/0.json", "x.chunk.00.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(record)
    with pytest.raises(ConfigError, match="this export is not finished"):
        find_inputs([str(tmp_path)])
    (tmp_path / "manifest.json").write_text(record)
    assert read(tmp_path) == {"data/train-0.parquet": ["a"]}
    reasons = unread(tmp_path)
    assert reasons.pop("README.md") == "about the data"
    assert set(reasons.values()) == {"part of an export and none of its data"}
    assert len(reasons) == 4


def test_a_shard_set_that_is_not_finished_is_no_input(tmp_path):
    """A part of its text would be read without a word."""
    record = b'{"patcher": {}, "columns": []}'
    shards = {"set/run.json": record, "set/shards/0.jsonl": "a"}
    fill(tmp_path, shards | {"set/validation/run.json": record})
    for named in (tmp_path / "set", tmp_path):
        with pytest.raises(ConfigError, match=r"^--input .*/set: this shard set is not finished; "):
            find_inputs([str(named)])
    assert len(find_inputs([str(tmp_path / "set" / "shards" / "*")]).files) == 1
    fill(tmp_path, {"set/manifest.json": record})
    assert [file.name for file in find_inputs([str(tmp_path / "set")]).files] == ["shards/0.jsonl"]


def test_names_that_are_no_unicode_give_ids_also_where_two_files_share_one(tmp_path):
    for directory in (b"a", b"b"):
        (tmp_path / os.fsdecode(directory)).mkdir()
        path = os.fsencode(tmp_path) + b"/" + directory + b"/caf\xe9.txt"
        with open(path, "w") as file:  # noqa: PTH123 (bytes)
            file.write("text")
    result = find_inputs([str(tmp_path / "a"), str(tmp_path / "b")])
    names = [file.name for file in result.files]
    assert names == [f"{tmp_path}/{directory}/caf\\xe9.txt" for directory in "ab"]
    for file in result.files:
        (document,) = read_split(plan_file(file, "text", 10).splits[0], Columns(), 10)
        assert document.sample_id.encode()
