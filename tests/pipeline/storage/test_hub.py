"""What is listed of a hub on loopback, and what is said of repositories that cannot be used."""

import hashlib
import re
from itertools import repeat

import pytest
from support import hub_client, loopback_hub
from support.loopback_answers import STRANGER, TOKEN, Fault, git_oid

FILES = {
    "b/part-10.jsonl": b'{"text": "small"}\n',
    "b/part-1.jsonl.zst": b"one",
    "a.parquet": b"a",
    "README.md": b"about",
    ".hidden/x.parquet": b"x",
    "dataset_infos.json": b"{}",
}
ONE = {"a.parquet": b"a"}
MANY = {f"{n // 700}/{n:05d}.parquet": b"%d" % n for n in range(2_100)}
FAULTS = {
    "busy": [Fault(status=503), None, Fault(hang_up=True), None],
    "slow": [Fault(stall=10)],
    "away": repeat(Fault(hang_up=True)),
    "no-hub": repeat(Fault(status=200)),
}
CASES = [
    *(("lab/good", None), ("lab/many", None), ("lab/nothing", None)),
    *((f"lab/{name}", None) for name in FAULTS),
    *(("lab/listed", token) for token in (None, TOKEN, STRANGER, "x")),
    *(("lab/closed", None), ("lab/missing", None), ("lab/missing", TOKEN)),
    *(("lab/good@no-such", None), ("lab/good..bad", None)),
]


@pytest.fixture(scope="module")
def hub():
    with loopback_hub.serve() as hub:
        hub.publish("lab/good", FILES)
        hub.publish("lab/many", MANY)
        hub.publish("lab/nothing", {"README.md": b"about", "a.pdf": b"%PDF"})
        hub.publish("lab/listed", ONE, gated="files")
        hub.publish("lab/closed", ONE, gated="all")
        for name, faults in FAULTS.items():
            hub.publish(f"lab/{name}", ONE)
            hub.faults(f"GET /api/datasets/lab/{name}/", faults)
        yield hub


@pytest.fixture(scope="module")
def told(hub, tmp_path_factory):
    """What became of each case."""
    cases = [["list", name, "", token] for name, token in CASES]
    client = hub_client.start(hub, cases, tmp_path_factory.mktemp("home"))
    return dict(zip(CASES, hub_client.finish(client), strict=True))


def test_what_is_listed_is_data_at_a_commit_with_its_hash(hub, told):
    root = f"hf://datasets/lab/good@{hub.repositories['datasets/lab/good'].head}"
    assert told["lab/good", None] == {
        path: [f"{root}/{path}", len(FILES[path]), version]
        for path, version in (
            ("a.parquet", f"sha256:{hashlib.sha256(b'a').hexdigest()}"),
            ("b/part-1.jsonl.zst", f"sha256:{hashlib.sha256(b'one').hexdigest()}"),
            ("b/part-10.jsonl", f"git:{git_oid(FILES['b/part-10.jsonl'])}"),
        )
    }


def test_trees_of_many_pages(hub, told):
    assert list(told["lab/many", None]) == sorted(MANY)
    assert len(hub.asked("GET /api/datasets/lab/many/tree")) == 3


def test_a_busy_or_slow_hub_is_asked_again(told):
    assert list(told["lab/busy", None]) == list(told["lab/slow", None]) == list(ONE)


def test_gated_repositories_open_to_their_token(told):
    assert list(told["lab/listed", TOKEN]) == list(ONE)


GATED = "is gated: accept its licence on http://.*/datasets/lab/{}, then set HF_TOKEN"


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("lab/away", None, "the hub at http://127.0.0.1:.* cannot be reached: Server disconnected"),
        ("lab/no-hub", None, "http://127.0.0.1:.* does not answer as a hub does .HF_ENDPOINT.: "),
        ("lab/nothing", None, "lab/nothing at main has no file that matches .*[*].parquet"),
        ("lab/listed", None, GATED.format("listed")),
        ("lab/listed", STRANGER, GATED.format("listed")),
        ("lab/listed", "x", "the hub refuses it: HTTP 401: Invalid.*is HF_TOKEN right"),
        ("lab/closed", None, GATED.format("closed")),
        ("lab/missing", None, "no dataset lab/missing on the hub .*HF_TOKEN"),
        ("lab/missing", TOKEN, "no dataset lab/missing on the hub .*HF_TOKEN"),
        ("lab/good@no-such", None, "lab/good has no revision no-such"),
        ("lab/good..bad", None, "not a hub id: "),
    ],
)
def test_repositories_that_cannot_be_used(told, name, token, message):
    error = told[name, token]["error"]
    assert re.fullmatch(f"ConfigError: --corpus {re.escape(name)}: .*{message}.*", error)
