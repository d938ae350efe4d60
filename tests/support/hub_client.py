"""Processes that list and download, as jobs do, from a hub on loopback, each in many cases.

In processes of their own: huggingface_hub reads its settings when it is imported.
"""

import json
import subprocess
import sys
from pathlib import Path

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
