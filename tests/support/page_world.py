"""What a reader of the pages has: a checkout, files that pages take for granted, a hub, an S3
server, and a Ray cluster; all of it small and on this machine.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
import zstandard

from model import load_entropy_model, save_blt, save_entropy_model
from support import llamas, tiny
from support.bpe import byte_level, ranks_file
from support.clusters import a_head_node, an_s3_bucket, an_s3_server
from support.jobs import ROOT
from support.loopback_answers import TOKEN
from support.loopback_hub import Hub, serve
from support.loopback_uploads import UploadHandler
from support.page_commands import STEPS, toml_of
from support.texts import topics

BUCKET = "bucket"
TOPICS = sorted(topics(), key=lambda topic: len(topic[1]))[5:65]
"""Documents that are not long."""
HELLASWAG = {
    "activity_label": "Baking bread",
    "ctx_a": "A woman puts flour on a table.",
    "ctx_b": "she then",
    "ctx": "A woman puts flour on a table. she then",
    "endings": ["kneads the dough.", "drives away.", "sings [loudly].", "is a table."],
    "label": "0",
}
ARC = {
    "id": "1",
    "question": "What is bread made of?",
    "choices": {"text": ["flour", "sand", "tin", "glass"], "label": ["A", "B", "C", "D"]},
    "answerKey": "A",
}
SMALLER_FILES = {
    "jobs/demo.py": {"SOURCE_BYTES = 2_000_000": "SOURCE_BYTES = 50_000"},
    "train/compare/experiments/*.toml": {
        "budget_flops = 8e12": "budget_flops = 3e10",
        "corpus_bytes = 4_000_000": "corpus_bytes = 300_000",
        "held_out_bytes = 120_000": "held_out_bytes = 20_000",
        "question = ": "seeds = [0]\nquestion = ",
    },
}
"""Files of the checkout in which sizes stand that no flag sets, and their smaller values."""


class World:
    """The places that commands use. ``directory`` takes what they keep."""

    def __init__(self, directory: Path, hub: Hub, s3: dict[str, str], stack: ExitStack):
        self.directory, self.hub, self._s3, self._stack = directory, hub, s3, stack
        self.made = directory / "given"
        """Files that pages take for granted, as commands of other pages make them."""

    @cached_property
    def variables(self) -> dict[str, str]:
        """The environment of commands; their checkout is to be added to ``PYTHONPATH``."""
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        settings = self.hub.settings(self.directory / "home", TOKEN) | self._s3
        return settings | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}

    @cached_property
    def cluster(self) -> dict[str, str]:
        """Variables of a reader who has a Ray cluster, which is started for the first one."""
        settings = {k: v for k, v in self.variables.items() if not k.startswith("RAY_")}
        del settings["PATH"]  # it has one
        head = self._stack.enter_context(a_head_node(self.directory, **settings))
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "HEAD_NODE")
        return {name: head[name] for name in names} | {"JOB_SERVER": head["RAY_ADDRESS"]}

    def checkout(self, directory: Path) -> Path:
        """A copy of the repository as it is now, as after a clone; its environment is ours."""
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode()
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, directory / name)
        (directory / ".venv").symlink_to(sys.prefix)
        for name in ("pyproject.toml", "constraints.txt"):
            os.utime(directory / name, (0, 0))  # make does not install anything anew
        for pattern, changes in SMALLER_FILES.items():
            for path in directory.glob(pattern):
                text = path.read_text()
                for old, new in changes.items():
                    assert old in text, f"{path} does not say {old!r} any more"
                    text = text.replace(old, new)
                path.write_text(text)
        return directory

    def give(self, page: str, directory: Path) -> None:
        """Put what a page takes for granted into the reader's directory, or bucket."""
        for name, make in GIVEN.get(page, {}).items():
            if name.startswith("s3://"):
                filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
                filesystem.put(str(make(self)), name, recursive=True)
                continue
            made, target = make(self), directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if made.is_dir() else shutil.copy)(made, target)

    def once(self, name: str, *command: object) -> Path:
        """``given/NAME``, which a job makes the first time: it has ``--output`` for it."""
        output = self.made / name
        if not output.exists():
            job, *flags = map(str, command)
            run = [sys.executable, str(ROOT / "jobs" / job), *flags, "--output", str(output)]
            env = self.variables | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{run}: {done.stdout} {done.stderr}"
        return output


@contextmanager
def world(directory: Path) -> Iterator[World]:
    """A hub with what pages name, and an S3 server with a bucket."""
    with ExitStack() as stack:
        hub = stack.enter_context(serve(UploadHandler))
        (directory / "s3").mkdir()
        s3 = stack.enter_context(an_s3_server(directory / "s3"))
        stack.enter_context(an_s3_bucket(s3, BUCKET))
        publish(hub, directory / "published")
        yield World(directory, hub, s3, stack)


def publish(hub: Hub, directory: Path) -> None:
    """Fill the hub: corpora, models and tokenizers with the names that pages use."""
    from pipeline.corpus.named import CORPORA

    documents = pa.table({"id": [i for i, _ in TOPICS], "text": [text for _, text in TOPICS]})
    fineweb, dclm = CORPORA["fineweb_edu"], CORPORA["dclm_baseline_1.0"]
    names = ("sample/10BT/000_00000.parquet", "data/CC-MAIN-2024-10/train-00000.parquet")
    parquet = dict.fromkeys(names, parquet_of(documents))
    hub.publish(fineweb.repository, parquet, commit=fineweb.revision)
    lines = "".join(json.dumps({"text": text}) + "\n" for _, text in TOPICS).encode()
    name = "global-shard_01_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst"
    packed = {name: zstandard.compress(lines)}
    hub.publish(dclm.repository, packed, commit=dclm.revision)
    entropies = load_entropy_model("entropy-1m")
    rule = tiny.Patcher(1.335442066192627)
    blt = tiny.blt(patcher=rule)
    models: dict[str, Callable[[Path], object]] = {
        "facebook/blt-1b": lambda path: save_blt(blt, path, layout="published"),
        "facebook/blt-entropy": lambda path: save_entropy_model(entropies, path),
        "meta-llama/Llama-3.2-1B": lambda path: debug_llama().save_pretrained(path),
        "meta-llama/Llama-3.1-8B": lambda path: debug_llama().save_pretrained(path),
    }
    for name, write in models.items():
        path = directory / name
        path.mkdir(parents=True)
        write(path)
        files = {each.name: each.read_bytes() for each in path.iterdir()}
        hub.publish(name, files, kind="model")
    for name in ("openai-community/gpt2", "meta-llama/Meta-Llama-3-8B"):
        hub.publish(name, {"tokenizer.json": tokenizer()}, kind="model")
    for name, config, row in (
        ("Rowan/hellaswag", "default", HELLASWAG),
        ("allenai/ai2_arc", "ARC-Easy", ARC),
    ):
        splits = ("train", "validation", "test")
        places = "".join(f"  - split: {split}\n    path: {split}.parquet\n" for split in splits)
        card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{places}---\n"
        rows = parquet_of(pa.Table.from_pylist([row] * 3))
        files = {f"{split}.parquet": rows for split in splits}
        hub.publish(name, files | {"README.md": card.encode()})


def parquet_of(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def debug_llama():
    """A Llama whose blocks are those of ``blt_debug``'s latent transformer."""
    from train import shim

    shim.prepare()
    from train.config_registry import blt_debug

    shape = blt_debug().model_spec.model.shape
    return llamas.llama(shape, rope={"rope_type": "default", "rope_theta": shape.rope_theta})


def tokenizer() -> bytes:
    return byte_level([text.encode() for _, text in TOPICS[:50]], 400)


def written(name: str, content: Callable[[], bytes]) -> Callable[[World], Path]:
    def make(world: World) -> Path:
        path = world.made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content())
        return path

    return make


def corpus(world: World) -> Path:
    """Text files with an id and a language."""
    rows = [{"id": name, "text": text, "language": "en"} for name, text in TOPICS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return written("corpus/topics.jsonl", lines.encode)(world).parent


def held_out(world: World) -> Path:
    rows = [{"id": name, "text": text[:500], "language": "en"} for name, text in TOPICS[:6]]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return written("held-out/topics.jsonl", lines.encode)(world).parent


def shards(name: str, *flags: str, text: Callable[[World], Path] = corpus):
    def make(world: World) -> Path:
        return world.once(name, "patch_corpus.py", "--input", text(world), *flags)

    return make


QUICK = ("--entropy-model", "entropy-conv", "--target-patch-size", "4.5")
patched = shards("patched", *QUICK)
held_out_shards = shards(
    "held-out-shards", "--entropy-model", "entropy-conv", "--threshold", "1.9", text=held_out
)


def preprocessed(world: World) -> Path:
    """Arrow files as the published preprocessing writes them."""
    name = "transformer_100m"
    flags = ("--shards", patched(world), "--layout", "reference", "--entropy-model-name", name)
    output = world.once("preprocessed", "export_shards.py", *flags)
    return next(output.glob(f"*/{name}"))


def weights(name: str) -> Callable[[World], Path]:
    return lambda world: world.directory / "published" / name


def trained(world: World) -> Path:
    """A run of blt_debug with a checkpoint, in its dump folder."""
    output = world.made / "outputs"
    if not output.exists():
        flags = ("--config", "blt_debug", "--training.steps", str(STEPS))
        flags += ("--dataloader.shards", str(patched(world)), "--dump-folder", str(output))
        run = [sys.executable, "-m", "train", *flags]
        env = world.variables | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(run, env=env, cwd=world.made, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    return output


def converted(world: World) -> Path:
    """Weights of such a run, with their entropy model."""
    checkpoint = trained(world) / "checkpoint" / f"step-{STEPS}"
    return world.once("weights", "convert_checkpoint.py", "--checkpoint", checkpoint)


def experiment(world: World) -> Path:
    """The experiment that docs/claims.md describes, with a smaller budget."""
    text = toml_of(ROOT / "docs" / "claims.md")
    for old, new in (("8e12", "3e10\ncorpus_bytes = 300000\nheld_out_bytes = 20000"),):
        text = text.replace(old, new, 1)
    text = re.sub(r"seeds = .*", "seeds = [0]", text)
    return written("two-or-four.toml", text.encode)(world)


GIVEN: dict[str, dict[str, Callable[[World], Path]]] = {
    "docs/baselines.md": {"patched": patched, "held-out": held_out_shards},
    "docs/byteify.md": {"patched": patched},
    "docs/claims.md": {"two-or-four.toml": experiment},
    "docs/from-facebookresearch-blt.md": {
        "hf-weights/blt_1b": weights("facebook/blt-1b"),
        "hf-weights/entropy_model": weights("facebook/blt-entropy"),
        "held-out": held_out,
        "preprocessed/fineweb_edu/transformer_100m": preprocessed,
        "patched/dclm": patched,
        "patched/code": patched,
    },
    "docs/many-nodes.md": {"patched": patched},
    "docs/models.md": {
        "DIR": converted,
        "held-out": held_out,
        "patched": patched,
        "hellaswag_val.jsonl": written("h.jsonl", lambda: json.dumps(HELLASWAG).encode() + b"\n"),
    },
    "docs/patching.md": {
        "corpus": corpus,
        "sample": patched,
        "preprocessed/corpus/transformer_100m": preprocessed,
    },
    "docs/shards.md": {
        "patched": patched,
        "other": shards("other", "--entropy-model", "entropy-conv", "--threshold", "1.2"),
        "ngram": shards("ngram", "--entropy-model", "ngram", "--target-patch-size", "4.5"),
        "tokenizer.json": written("tokenizer.json", tokenizer),
        "cl100k_base.tiktoken": written(
            "ranks", lambda: ranks_file([bytes([byte]) for byte in range(256)] + [b"th", b"the"])
        ),
    },
    "docs/training.md": {"patched": patched, "s3://bucket/patched": patched},
}
"""What pages take for granted, by page: names, and what makes them."""
