"""Places: URLs whose paths look like something else."""

import pytest

from pipeline.storage.outages import PatientFileSystem
from pipeline.storage.places import filesystem_of, open_input


def test_a_path_of_a_store_may_hold_what_chains_filesystems(tmp_path):
    """One such object kept a whole bucket from being prepared."""
    filesystem, path = filesystem_of("s3://bucket/a::b.jsonl")
    assert isinstance(filesystem, PatientFileSystem) and path == "bucket/a::b.jsonl"
    assert filesystem_of("s3://bucket/a")[0] is filesystem
    (tmp_path / "a::b").write_bytes(b"text")
    assert open_input(f"file://{tmp_path}/a::b").read() == b"text"


@pytest.mark.parametrize("url", ["simplecache::memory://bucket/a", "simplecache::s3://bucket/a"])
def test_chains_are_chains(url):
    filesystem, _ = filesystem_of(url)
    assert "Cache" in type(filesystem._filesystem).__name__
