"""Read files in this process, one after another; print what came of each, and the memory it took.

``python -m support.peak_memory BYTES FILE…`` reads so many bytes of text of each file at most. Each
line that it prints is JSON: the file, its documents and rejects, the error if there is one, its
seconds, and the peak in bytes beyond what the process had before.
"""

import gc
import json
import resource
import sys
import time
from pathlib import Path

from pipeline.cluster.memory import bound_memory
from pipeline.corpus.documents import Columns, Document, read_split
from pipeline.corpus.formats import known_format
from pipeline.corpus.splits import plan_file
from pipeline.errors import PipelineError
from pipeline.storage.listing import list_files

MAX_DOCUMENT_BYTES = 64 << 20
"""The default of ``--max-document-bytes``."""


def resident(name: str) -> int:
    """A value of this process in bytes: VmRSS now, VmHWM at most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10


def read(path: str, most_text: int) -> dict:
    """Plan and read a file, at most so many bytes of text."""
    documents = rejects = text = 0
    columns = Columns("text", None, ("id",) if "." in path else ())
    error = reason = ""
    try:
        (file,) = list_files(path).files
        plan = plan_file(file, known_format(file, "auto", "--format"), 64 << 20)
        if not plan.columns or "id" not in plan.columns:
            columns = Columns()
        for split in plan.splits:
            for record in read_split(split, columns, MAX_DOCUMENT_BYTES):
                if isinstance(record, Document):
                    documents += 1
                    text += len(record.text) + record.side_bytes
                else:
                    rejects += 1
                    reason = reason or record.reason
                if text > most_text:
                    break
    except PipelineError as problem:
        error = str(problem)
    return {"documents": documents, "rejects": rejects, "reason": reason, "error": error}


def measured(path: str, most_text: int = 1 << 62) -> dict:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, start = resident("VmRSS"), time.process_time()
    result = read(path, most_text)
    seconds = time.process_time() - start
    peak = resident("VmHWM") - before
    return {"file": Path(path).name, **result, "seconds": round(seconds, 2), "peak": peak}


def main() -> None:
    most_text, *paths = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # if all else fails
    bound_memory()
    for path in paths:
        print(json.dumps(measured(path, int(most_text))), flush=True)


if __name__ == "__main__":
    main()
