"""JSON that carries its hash."""

import pytest

from pipeline.errors import PipelineError
from pipeline.storage.checked_json import parse_checked_json, to_checked_json
from pipeline.storage.output import OutputDirectory


def test_no_flipped_bit_of_checked_json_is_silent(tmp_path):
    output = OutputDirectory(str(tmp_path))
    values = {"threshold": 1.335442066192627, "names": ["ä", "b"], "z": {"check": "0" * 16}}
    data = to_checked_json(values)
    output.write("a.json", data)
    assert output.read_json("a.json") == values
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        try:
            found = parse_checked_json(bytes(damaged))
        except ValueError:
            continue
        # The name of the key is what was hit: all else is there.
        assert {key: found[key] for key in values} == values and len(found) == 4
    output.write("a.json", data.replace(b"1.33", b"1.34"))
    with pytest.raises(PipelineError, match=r"a.json: is damaged: its check is not the hash"):
        output.read_json("a.json")
