"""Sizes in bytes as people write them."""

from dataclasses import dataclass

import pytest
import tyro

from pipeline.cli.sizes import Size, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("0", 0), ("67108864", 67108864), ("64MiB", 64 << 20), ("64 mib", 64 << 20)),
        *(
            ("12MB", 12_000_000),
            ("12m", 12_000_000),
            ("1.5GB", 1_500_000_000),
            ("100_000", 100_000),
        ),
        *(("4TB", 4 * 10**12), ("9007199254740993", 9007199254740993), ("2PiB", 2 << 50)),
    ],
)
def test_parse(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "64 MiBs", "1e6", "0x10", "64 M B", "٣", "1.5"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="is no size in bytes"):
        parse_size(text)


def test_format_is_exact_and_short():
    sizes = {0: "0", 1: "1", 999: "999", 67108864: "64MiB", 12_000_000: "12MB", 1 << 40: "1TiB"}
    assert {size: format_size(size) for size in sizes} == sizes
    assert all(parse_size(format_size(size)) == size for size in range(0, 1 << 22, 999))


def test_a_flag(capsys):
    @dataclass
    class Flags:
        shard_bytes: Size = 64 << 20
        """The size of a shard."""

    assert tyro.cli(Flags, args=[]).shard_bytes == 64 << 20
    assert tyro.cli(Flags, args=["--shard-bytes", "1MB"]).shard_bytes == 1_000_000
    with pytest.raises(SystemExit):
        tyro.cli(Flags, args=["--help"])
    assert "(default: 64MiB)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tyro.cli(Flags, args=["--shard-bytes", "much"])
    assert "is no size in bytes" in capsys.readouterr().err
