"""Places: URLs whose paths look like something else; files that cannot be read."""

import errno
import hashlib
import io

import pytest

from pipeline.errors import BadFileError, UnreachableFileError
from pipeline.storage import places
from pipeline.storage.outages import PatientFileSystem
from pipeline.storage.places import filesystem_of, open_input, sha256_of


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


def test_a_bad_sector_is_the_fault_of_a_file_and_what_is_out_of_reach_is_not(tmp_path, monkeypatch):
    path = tmp_path / "a"
    with pytest.raises(UnreachableFileError, match="a: cannot be read: No such file"):
        sha256_of(str(path))
    path.write_bytes(b"text")
    assert sha256_of(str(path)) == hashlib.sha256(b"text").hexdigest()

    class Disk(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(places, "open_input", lambda url: Disk())
    with pytest.raises(BadFileError, match="a: cannot be read: Input/output error"):
        sha256_of(str(path))
    with pytest.raises(UnreachableFileError):
        sha256_of("s3://bucket/a")
