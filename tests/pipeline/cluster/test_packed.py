"""Values that workers unpack one by one from memory that they share."""

import pickle

from pipeline.cluster.packed import Packed
from pipeline.prepare.sorted_runs import SortedRun


def test_a_worker_holds_no_copy_of_what_it_does_not_need():
    runs = [[SortedRun(f"{i}.run", i, 256, 7, "0" * 48, "1" * 16)] for i in range(1000)]
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(Packed(runs), protocol=5, buffer_callback=buffers.append)
    assert len(sent) < 1000 < sum(len(buffer.raw()) for buffer in buffers)
    received: Packed[list[SortedRun]] = pickle.loads(sent, buffers=buffers)
    assert [received[number] for number in (0, 999)] == [runs[0], runs[999]]
