"""A short form of ``make chaos``: a driver that is stopped, killed and run again, on the Ray that
tests share."""

import random

from campaigns.chaos import Hit, Place, command, play
from support.jobs import environment
from support.local_ray import to_join_local_ray
from support.texts import topics, write_jsonl


def test_a_driver_that_is_hit_and_run_again_writes_the_same(local_ray, tmp_path, run_here):
    place, draw = Place(tmp_path, "local", None), random.Random(0)
    write_jsonl(tmp_path / "in" / "0.jsonl", topics()[:45])
    assert run_here(*command("patch", place, "reference")[2:]).returncode == 0
    reference = place.contents("reference")
    assert sum(path.startswith("shards/") for path in reference) > 3

    def committed() -> bool:
        return any((tmp_path / "out-patch" / "entries").glob("*.json"))

    killed = Hit("driver", "SIGKILL", 1.5, 0.0, once=committed)
    hits = {0: [Hit("driver", "SIGSTOP", 1.0, 0.5), killed]}
    env = environment(**to_join_local_ray())
    result = play("patch", place, reference, env, draw, lambda run: hits.get(run, []))
    assert result.identical, result
    assert result.exits == [-9, 0] and len(result.hits) == 2, result
