"""How many files a commit to the hub adds."""

import pytest

from pipeline.export.hub_upload import files_together


@pytest.mark.parametrize(
    ("files", "together"), [(1, 50), (5_000, 50), (20_000, 200), (1_500_000, 1000)]
)
def test_large_exports_take_fewer_commits_of_more_files(files, together):
    assert files_together(files) == together
