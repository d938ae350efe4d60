"""Read files in a process with limits, one after another; tell what came of each, and what it took.

``python -m support.peak_memory BYTES`` takes paths from its input, one per line, reads so many
bytes of text of each file at most, and prints a line of JSON for each: its documents and rejects,
the error if there is one, seconds of the processor, and the peak in bytes beyond what was there.
"""

import gc
import json
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from pipeline.cluster.memory import bound_memory
from pipeline.corpus.documents import Columns, Document, read_split
from pipeline.corpus.formats import known_format
from pipeline.corpus.splits import plan_file
from pipeline.errors import PipelineError
from pipeline.storage.listing import list_files

MAX_DOCUMENT_BYTES = 64 << 20
"""The default of ``--max-document-bytes``."""
MOST_ADDRESSES = 12 << 30
"""Bytes of addresses, so that the machine survives a reader that does not keep its bound."""
MUCH = 1 << 30


def resident(name: str) -> int:
    """A value of this process in bytes: VmRSS now, VmHWM at most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10


def read(path: str, most_text: int) -> dict[str, Any]:
    """Plan and read a file as jobs do, at most so many bytes of text."""
    documents = rejects = text = 0
    error = reason = bug = ""
    try:
        (file,) = list_files(path).files
        plan = plan_file(file, known_format(file, "auto", "--input-format"), 64 << 20)
        has_id = plan.columns is not None and "id" in plan.columns
        columns = Columns("text", None, ("id",) if has_id else ())
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
    except Exception:
        bug = traceback.format_exc()
    return {
        "documents": documents,
        "rejects": rejects,
        "reason": reason,
        "error": error,
        "bug": bug,
    }


def measured(path: str, most_text: int) -> dict[str, Any]:
    if resident("VmRSS") > MUCH:
        gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, start = resident("VmRSS"), time.process_time()
    result = read(path, most_text)
    seconds = round(time.process_time() - start, 2)
    peak = resident("VmHWM") - before
    return {"file": Path(path).name, **result, "seconds": seconds, "peak": peak}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bound_memory()
    for line in sys.stdin:
        print(json.dumps(measured(line.rstrip("\n"), int(sys.argv[1]))), flush=True)


if __name__ == "__main__":
    main()
