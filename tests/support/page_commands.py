"""Every command of every page, and how it is run at a small size.

The tests parse the commands; ``make doc-commands`` runs them. :data:`CHANGES` replaces what a page
leaves open (``…``), large models, and numbers of steps and processes; :data:`NOT_RUN` lists what is
not run, with the reason. A command that neither names is run as the page has it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from support.jobs import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^```(?P<kind>sh|bash|python)\n(?P<block>.*?)^```"
    r"|`(?P<inline>python jobs/\w+\.py --[^`…]+)`",
    re.MULTILINE | re.DOTALL,
)
"""A block of code, or a command within a sentence."""
LINE = re.compile(
    r"[^\n]*<<'?(?P<end>\w+)'?.*?\n(?P=end)\n"  # with a here-document
    r"|(?:[^\n]*(?:\\|\|\|)\n)*[^\n]*\n",  # or with lines that go on
    re.DOTALL,
)
STEPS = 4
"""Steps of each training."""

NOT_RUN = {
    r"^sbatch ": "needs SLURM; tests/train/test_recipes.py runs the script without it",
    r"^make gpu-check": "needs a GPU; tests/gpu/test_checks.py runs its checks on small models",
    r"^make test(-fast)?$": "runs the tests, as .ci/run does",
    r"^make doc-commands$": "is what runs the commands",
    r"^make benchmark$": "takes half an hour, and needs an idle machine",
}
"""Patterns of commands that are not run, with the reasons."""
SERVES = r"^python jobs/patch_viewer\.py (?!.*--write-space)"
"""The pattern of commands that go on until somebody stops them: they are stopped once their page
is there."""

_TRAINS = r"(?:python -m train|torchrun|python jobs/pretrain\.py)"
CHANGES = {
    # What pages leave open.
    r"\bRAY_ADDRESS=…": "RAY_ADDRESS=$HEAD_NODE",
    r"\b(HF_TOKEN|AWS_ENDPOINT_URL)=…": r"\1=$\1",
    r"http://HEAD:8265": "$JOB_SERVER",
    r"^(RAY_ADDRESS\S+ python jobs/patch_corpus.py) …$": r"\1 --input corpus/ --output driven/"
    " --target-patch-size 4.5",
    r"^(ray .* jobs/patch_corpus.py) …$": r"\1 --input $PWD/corpus --output $PWD/submitted"
    " --target-patch-size 4.5",
    r"^(python jobs/patch_corpus.py --input s3.*) …$": r"\1 --target-patch-size 4.5",
    r"^(python jobs/pretrain.py .*) …$": r"\1 --dataloader.shards $PWD/patched"
    " --dump-folder $PWD/outputs-ray",
    r"^torchrun … (.*)$": r"torchrun --nproc-per-node 8 \1 --dataloader.shards patched/",
    r'(entropy_model\("|--entropy-model )directory-or-hub-id': r"\1facebook/blt-entropy",
    r"directory-or-hub-id": "facebook/blt-1b",
    # Sizes.
    r"dict\(pydoc_data.topics.topics\)": "dict(sorted(pydoc_data.topics.topics.items())[:25])",
    r'"\[a-z\]\*\.py"': '"a*.py"',
    r"--validation-documents 40": "--validation-documents 3",
    r" --training.steps \d+": "",
    rf"^({_TRAINS} .*)$": rf"\1 --training.steps {STEPS}",
    r"step-(1000|600)\b": f"step-{STEPS}",
    r"train --config blt_8b_from_llama3": "train --config blt_debug --checkpoint.initial-load-in-hf"
    " --checkpoint.initial-load-path hf://meta-llama/Llama-3.1-8B",
    rf"^({_TRAINS} .*--config) (blt|entropy)_\d\w+": r"\1 \2_debug",
    r"--nproc-per-node 8": "--nproc-per-node 2",
    r"data-parallel-replicate-degree 8": "data-parallel-replicate-degree 2",
    r"--num-workers 64": "--num-workers 2",
    r"--num-chunks 32": "--num-chunks 2",
    r"--vocab-size 4096": "--vocab-size 512",
    r"--max-new-bytes 400": "--max-new-bytes 12",
    r"max_new_bytes=200": "max_new_bytes=12",
    r"^(python jobs/generate.py (?!.*max-new).*)$": r"\1 --max-new-bytes 12",
    r"^(python jobs/distil_entropy_model.py .*)$": r"\1 --steps 20",
    r"^make fuzz$": 'make fuzz FLAGS="--count 40"',
    r"^(make chaos)$": r'\1 FLAGS="--rounds 1"',
}
"""Patterns in commands, and what takes their place, one after the other."""


def small(text: str, changes: Mapping[str, str] = CHANGES) -> str:
    """A command with the changes, one after the other."""
    for pattern, by in changes.items():
        text = re.sub(pattern, by, text)
    return text


@dataclass(frozen=True)
class Command:
    """What a reader would type: a line, or some lines of Python."""

    page: str
    """Relative to the repository."""
    text: str
    """As it is on the page, without comments; lines that go on are one."""
    python: bool = False

    @property
    def not_run(self) -> str | None:
        """The reason why it is not run, if it is not."""
        reasons = (why for pattern, why in NOT_RUN.items() if re.search(pattern, self.text))
        return next(reasons, None)

    @property
    def small(self) -> str:
        """The command as it is run."""
        return small(self.text)

    @property
    def serves(self) -> bool:
        """True if it goes on until somebody stops it."""
        return re.search(SERVES, self.text) is not None


def commands(page: Path) -> Iterator[Command]:
    """The commands of a page, in order."""
    name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else str(page)
    for found in BLOCK.finditer(page.read_text()):
        if found["kind"] == "python":
            yield Command(name, found["block"], python=True)
            continue
        for line in LINE.finditer(found["block"] or f"{found['inline']}\n"):
            text = line[0]
            if not line["end"]:
                text = re.sub(r"(\\|(?<=\|\|))\n\s*", " ", text).replace("  ", " ")
                text = re.sub(r"(^|\s)#.*", "", text).strip()
            if text:
                yield Command(name, text)


def toml_of(page: Path) -> str:
    """The experiment that a page describes."""
    (found,) = re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)
