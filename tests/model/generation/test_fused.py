"""Functions that are compiled while a step is recorded: in one piece, with the same results."""

import functools
from math import nan

import pytest
import torch
from support.interpreted_process import run_interpreted

from model.generation import fused, sampling
from model.layers import attention
from model.layers.attention import RotaryAngles

EVERY = {
    each
    for module in (fused, sampling)
    for each in vars(module).values()
    if isinstance(each, fused.Fused)
}


@pytest.fixture
def traced(monkeypatch):
    """Compilation without generating code, which takes long; falling to pieces is an error."""
    compile_ = functools.partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compile_)
    for each in EVERY:
        monkeypatch.setattr(each, "_compiled", None)


def cases(batch: int):
    draw = torch.Generator().manual_seed(batch)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    def below(most: int, *shape: int) -> torch.Tensor:
        return torch.randint(most, shape, generator=draw)

    position = below(900, batch, 2)
    for heads, kv, dim in ((12, 12, 16), (4, 2, 32)):
        rotary = RotaryAngles(dim, 1e4)(below(99, batch))
        yield fused.turned, (normal(batch, heads + 2 * kv, dim), rotary, heads + kv)
        yield fused.gated, (normal(batch, 2 * heads * dim),)
    yield fused.unseen, (position, below(900, batch, 2), 500, 512, 64, torch.float32)
    near, back = below(260, batch, 8), 5 - torch.arange(8).expand(batch, 8)
    yield fused.ngram_rows, (near, back, below(1 << 60, 6, 8), 5002)
    tables = [normal(50, 8) for _ in range(6)]
    yield fused.embedded, (below(9, batch), below(50, batch, 6), normal(9, 8), tables)
    bytes_ = torch.arange(-4, 28).expand(batch, 32)
    bounds = torch.tensor([3, 9, 20, 1 << 62]).expand(batch, 4)
    layout = (bytes_, bounds, torch.ones(batch).long(), 2)
    yield fused.own_patches, (*layout, 2)
    yield fused.ungathered, (*layout, 2, 2, torch.float32)
    yield fused.entropy, (normal(batch, 260),)
    yield fused.angles, (below(900, batch), RotaryAngles(16, 1e4).bits_F)
    own = below(2 * batch + 1, batch, 12)  # some bytes belong to none, some patches have none
    yield fused.pooled, (normal(batch, 12, 8), own, 2)
    begins = torch.tensor([[True], [False]]).repeat(batch, 1)[:batch]
    yield fused.largest_so_far, (normal(batch, 8), normal(batch, 8), begins)
    yield fused.read_from, (normal(batch, 32), normal(batch, 3, 2, 4, 8), None)
    gone = torch.tensor([-torch.inf, 0, 0]).expand(batch, 3)
    yield fused.read_from, (normal(batch, 32), normal(batch, 3, 2, 4, 8), gone)
    logits = normal(batch, 20)
    logits[1:2].round_()  # with equal ones
    logits[2:3] = nan
    yield sampling.likeliest, (logits,)
    yield sampling.drawn_from_all, (logits, normal(batch, 20).exp(), torch.tensor(0.7).double())


def test_compiled_is_plain(traced):
    done = set()
    for function, arguments in cases(4):
        expected = function(*arguments)
        with torch.inference_mode(), fused.fusing():
            torch.testing.assert_close(function(*arguments), expected)
        assert function._compiled is not function._function
        done.add(function)
    assert done == EVERY


def check_kernels() -> None:
    """Compiled as for a GPU, for all sizes at once: of two cases of a function, the second meets
    the kernels of the first."""
    from support.interpreted import interpreter

    attention.turn_complex = attention.turn_real
    compiled: dict[fused.Fused, object] = {}
    for function, arguments in cases(5):
        plain = function._function
        if function not in compiled:
            compiled[function] = torch.compile(
                plain, backend=interpreter({}), dynamic=True, fullgraph=True
            )
        with torch.inference_mode():
            torch.testing.assert_close(compiled[function](*arguments), plain(*arguments))


def test_kernels_of_a_gpu():
    """Their values, run by Triton's interpreter."""
    pytest.importorskip("triton", reason="kernels for GPUs are generated as Triton")
    run_interpreted(check_kernels)


def test_own_patches_by_hand():
    """Patches end after bytes 8 and 19, and gather from their own bytes and one patch before."""
    bounds = torch.tensor([[3, 9, 20, 1 << 62]])  # of patch -1, 0, 1 (open), none
    layout = torch.tensor([[-1, 2, 3, 8, 9, 19, 20]]), bounds, torch.tensor([1]), 2
    assert fused.own_patches(*layout, 2).tolist() == [[2, 2, 2, 2, 0, 0, 2]]
    mask = fused.ungathered(*layout, 2, 1, torch.float32)
    assert (mask[0, 0] == 0).tolist() == [False, False, True, True, True, True, False]
    assert (mask[0, 1] == 0).all()  # there is no second patch


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch):
    @fused.fused
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def fails(*_: object, **__: object):
        def run(*_: object):
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    with fused.fusing(), pytest.warns(UserWarning, match="double cannot be compiled here"):
        assert double(torch.ones(1)) == 2
    with fused.fusing():
        assert double(torch.ones(1)) == 2
