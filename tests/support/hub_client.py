"""Clients of a hub on loopback: this process, or others that list and download in many cases.

huggingface_hub reads its settings when it is imported: a process of its own needs the environment
alone, this one has to be told.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.loopback_answers import STRANGER, TOKEN
from support.loopback_hub import Hub

CLIENT = """
import json, os, sys
from pathlib import Path
from pipeline.storage import download, hub, tokenizer_files
from pipeline.corpus.named import find_corpus, list_corpus
from pipeline.errors import PipelineError
from pipeline.storage.output import OutputDirectory

hub.FIRST_WAIT, hub.RETRIES = 0.01, 3

def fetch(name, directory):
    answers = {}
    for file in list_corpus(find_corpus(name))[0]:
        reported = []
        try:
            path = download.fetch(file, Path(directory), reported.append)
            answers[file.name] = {"path": str(path), "reported": sum(reported)}
        except PipelineError as error:
            answers[file.name] = {"error": f"{type(error).__name__}: {error}"}
    return answers

def list_files(name, directory):
    return {f.name: [f.url, f.size, f.version] for f in list_corpus(find_corpus(name))[0]}

def tokenizer(name, directory):
    files = tokenizer_files.find_tokenizer(name)
    return tokenizer_files.download_tokenizer(name, files, OutputDirectory(f"{directory}/{name}"))

for kind, name, directory, token in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        work = {"list": list_files, "fetch": fetch, "tokenizer": tokenizer}[kind]
        print(json.dumps(work(name, directory)))
    except PipelineError as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""


def be_a_client(monkeypatch: pytest.MonkeyPatch, settings: Mapping[str, str]) -> None:
    """Let this process use a hub as one with these environment variables does."""
    from huggingface_hub import constants

    endpoint, home = settings["HF_ENDPOINT"], settings["HF_HOME"]
    for name in ("HF_TOKEN", "no_proxy"):
        monkeypatch.setenv(name, settings[name])
    url = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{home}/token")


def start(hub: Hub, cases: list[list], home: Path, timeout: int = 1) -> subprocess.Popen:
    settings = hub.settings(home)
    settings |= dict.fromkeys(["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"], str(timeout))
    run = [sys.executable, "-c", CLIENT, json.dumps(cases)]
    return subprocess.Popen(run, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(client: subprocess.Popen) -> list:
    out, err = client.communicate(timeout=120)
    assert client.returncode == 0 and err == b"", err.decode()  # the client's warnings are silent
    for secret in (TOKEN, STRANGER, "SecretOfTheCDN"):
        assert secret not in out.decode()
    return [json.loads(line) for line in out.splitlines()]
