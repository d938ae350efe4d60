"""Where a converted checkpoint is written."""

from support.blt_cases import sharp_blt, tiny

from model import load_blt
from train.convert.job import write_checkpoint


def test_links_to_directories_are_followed(tmp_path):
    """A large disk is often reached by a link, to a directory that may not be there yet."""
    blt = sharp_blt(tiny())
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    for name in ("empty", "new"):
        output = tmp_path / f"to-{name}"
        output.symlink_to(tmp_path / "disk" / name)
        write_checkpoint(output, blt, None, "own")
        assert output.is_symlink()
        assert load_blt(tmp_path / "disk" / name, device="cpu").config == blt.config
    assert sorted(each.name for each in tmp_path.iterdir()) == ["disk", "to-empty", "to-new"]
    assert sorted(each.name for each in (tmp_path / "disk").iterdir()) == ["empty", "new"]
