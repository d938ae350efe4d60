"""Conversion writes to the right place, and says what is wrong with weights."""

import torch
from rich.console import Console
from support.blt_cases import sharp_blt, tiny

from model import load_blt, save_blt
from train.convert.config import ConvertCheckpointConfig
from train.convert.job import convert_checkpoint, write_checkpoint


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


def test_weights_that_are_no_numbers_are_named(tmp_path, capsys):
    blt = sharp_blt(tiny())
    name = "local_decoder.norm.weight"
    for number, (value, dtype) in enumerate(
        [
            (1.0, None),
            (torch.inf, None),
            (torch.nan, torch.bfloat16),
            (torch.nan, torch.float8_e5m2),
        ]
    ):
        weight = blt.get_parameter(name).detach().float().fill_(value)
        blt.load_state_dict({**blt.state_dict(), name: weight.to(dtype)}, assign=True)
        save_blt(blt, tmp_path / str(number))
        config = ConvertCheckpointConfig(
            str(tmp_path / str(number)), str(tmp_path / f"to-{number}")
        )
        assert convert_checkpoint(config, Console(stderr=True)) == 0
        said = f"note: there is NaN or infinity in {name}:" in capsys.readouterr().err
        assert said == (value != 1.0)
