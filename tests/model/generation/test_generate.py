"""Generation equals running everything anew for each byte; sampling, stopping, streaming."""

import codecs
import math
import random
from dataclasses import replace

import pytest
import torch
from support.weights import sharpen

from model import BLT, BLT_SIZES, ByteTokenizer, EntropyModel, EntropyModelConfig, Patcher, generate
from model.generation.generate import stream
from model.generation.sampling import Sampling, allowed, draw_noise
from model.generation.writer import Writer
from model.segments import cut_segments
from model.tokenizer import BYTE_OFFSET, EOS_ID, NEXT_IDS

PROMPTS = ["", "Hello world, this is", b"\xff" * 300 + b" and on", "für"]
RULES = [Patcher(3.3), Patcher(0.2, "monotonic"), Patcher(3.3, max_patch_length=4)]


@pytest.fixture(scope="module")
def models() -> tuple[BLT, EntropyModel]:
    torch.manual_seed(5)  # with these, texts seldom end by themselves
    config = EntropyModelConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, window=40)
    entropy_model = EntropyModel(config).eval()
    blt = BLT(replace(BLT_SIZES["debug"], local_attention_window_len=60)).eval()
    sharpen(entropy_model, 4)
    sharpen(blt, 3)
    return blt, entropy_model


@torch.no_grad()
def from_scratch(blt, entropy_model, prompt, patcher, count: int) -> tuple[bytes, int]:
    """Greedy text, everything run anew for each byte; and the patches of prompt and text."""
    data = prompt.encode() if isinstance(prompt, str) else prompt
    tokens = ByteTokenizer().encode(data, eos=False)
    prompt_tokens = len(tokens)
    while True:
        x = torch.tensor([tokens])
        h = entropy_model.entropies(x)
        lengths = patcher.patch_lengths(h, x, include_next_token=True)
        token = int(allowed(blt(x, lengths)[0, -1]).argmax())
        if token == EOS_ID or len(tokens) == prompt_tokens + count:
            text = bytes(t - BYTE_OFFSET for t in tokens[prompt_tokens:])
            return text, lengths.shape[1]
        tokens.append(token)


@pytest.mark.parametrize("patcher", RULES, ids=str)
def test_greedy_text_is_that_of_running_everything_anew(models, patcher):
    expected, patches = zip(
        *(from_scratch(*models, prompt, patcher, 80) for prompt in PROMPTS), strict=True
    )
    assert sum(patches) > 120
    for draft_bytes in (0, 1, 5):
        written = generate(
            *models, PROMPTS, patcher=patcher, max_new_bytes=80, draft_bytes=draft_bytes
        )
        assert written == list(expected), draft_bytes


@pytest.mark.parametrize("reset", [False, True])
@torch.no_grad()
def test_an_entropy_model_writes_by_itself(models, reset):
    _, model = models
    expected = []
    prompts = [*PROMPTS, "a line\nand the next"]
    for prompt in prompts:
        data = prompt.encode() if isinstance(prompt, str) else prompt
        tokens = ByteTokenizer().encode(data, eos=False)
        begin = len(tokens)
        while len(tokens) < begin + 60:  # beyond its window
            lengths = cut_segments(
                torch.tensor(tokens),
                torch.tensor([len(tokens)]),
                context_length=None,
                reset_at_newline=reset,
            )
            logits = model.logits_packed(torch.tensor(tokens), lengths)
            if (token := int(allowed(logits[-1]).argmax())) == EOS_ID:
                break
            tokens.append(token)
        expected.append(bytes(token - BYTE_OFFSET for token in tokens[begin:]))
    options = {"max_new_bytes": 60, "reset_at_newline": reset}
    assert generate(model, None, prompts, **options) == expected and any(expected)
    with pytest.raises(ValueError, match="draft_bytes: an entropy model has no part"):
        generate(model, None, PROMPTS, draft_bytes=1)


def test_some_drafts_are_right_and_some_are_not(models, monkeypatch):
    """Else nothing would be shown of taking back and of going on."""
    from model.generation.incremental_blt import IncrementalBLT

    kept: list[int] = []
    keep = IncrementalBLT.keep

    def noting(self, kept_B):
        kept.extend(kept_B.tolist())
        keep(self, kept_B)

    monkeypatch.setattr(IncrementalBLT, "keep", noting)
    generate(*models, ["Hello"], patcher=RULES[0], max_new_bytes=80, draft_bytes=3)
    assert {1, 4} <= set(kept)


def test_what_is_drawn_depends_on_the_seed_and_on_nothing_else(models):
    options = {"patcher": RULES[0], "max_new_bytes": 40, "temperature": 1.0, "top_p": 0.9}
    together = generate(*models, PROMPTS, seed=5, **options)
    alone = [generate(*models, [p], seed=5 + row, **options)[0] for row, p in enumerate(PROMPTS)]
    assert together == alone
    assert generate(*models, PROMPTS, seed=6, **options) != together


def test_probabilities_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    for sampling, expected in (
        (Sampling(1.0), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(1.0, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(1.0, top_k=9), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(1.0, top_p=0.5), [1, 0, 0, 0]),
        (Sampling(1.0, top_p=0.51), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(1.0, top_p=1.0), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(1.0, top_k=2, top_p=0.6), [1, 0, 0, 0]),
        (Sampling(0.5), [x**2 / 0.345 for x in (0.5, 0.25, 0.15, 0.1)]),
        (Sampling(1e-300), [1, 0, 0, 0]),
    ):
        torch.testing.assert_close(sampling.probabilities(logits), torch.tensor([expected]).float())


def test_of_equally_likely_tokens_the_first_are_kept():
    """Logits of few values, as bfloat16 has: the likeliest one alone is that of greedy text."""
    logits = torch.randint(0, 3, (50, 260), generator=torch.Generator().manual_seed(0)).float()
    noise = torch.rand(50, 260, generator=torch.Generator().manual_seed(1))
    greedy = Sampling().choose(logits, noise)
    for only in ({"top_k": 1}, {"top_p": 1e-9}):
        assert torch.equal(Sampling(1.0, **only).choose(logits, noise), greedy)


def test_all_of_the_probability_is_that_of_all_tokens():
    logits = 8 * torch.randn(50, 260, generator=torch.Generator().manual_seed(0))
    kept = Sampling(1.0, top_p=1.0).probabilities(logits) > 0
    assert torch.equal(kept, Sampling(1.0).probabilities(logits) > 0)


def test_draws_follow_the_probabilities_and_never_give_a_special_id():
    logits = torch.full((1, 300), 50.0)  # a vocabulary may be larger than there are bytes
    logits[0, list(NEXT_IDS)] = 0
    logits[0, 100] = math.log(256)
    generator = torch.Generator().manual_seed(0)
    noise = torch.empty(1, 300)

    def draw() -> int:
        draw_noise(noise[0], generator)
        return int(Sampling(1.0).choose(logits, noise))

    drawn = [draw() for _ in range(2000)]
    assert set(drawn) <= set(NEXT_IDS) and len(NEXT_IDS) == 257
    assert abs(drawn.count(100) / 2000 - 0.5) < 0.05
    assert int(Sampling().choose(logits, noise)) == 100


def test_draws_are_those_of_multinomial():
    """So that texts of earlier releases come again."""
    p = torch.rand(50, 260, generator=torch.Generator().manual_seed(1)).softmax(-1)
    one, other = (torch.Generator().manual_seed(7) for _ in range(2))
    noise = torch.empty(1, 260)
    for p_V in p:
        logits = p_V.log()[None]
        draw_noise(noise[0], other)
        expected_V = Sampling(1.0, top_k=40).probabilities(allowed(logits))[0]
        assert torch.multinomial(expected_V, 1, generator=one) == Sampling(1.0, top_k=40).choose(
            logits, noise
        )


def test_a_finished_text_makes_room_for_the_next_prompt(models):
    """Texts are the same however many are written at a time, in whichever rows."""
    draw = random.Random(3)
    prompts = [
        bytes(draw.choices(range(97, 123), k=draw.choice([0, 3, 40, 300]))) for _ in range(9)
    ]
    stop = ["e", "\n"]  # so that texts end at different times
    for options in ({}, {"temperature": 1.0, "seed": 3}, {"draft_bytes": 3}):
        options |= {"patcher": RULES[0], "max_new_bytes": 30, "stop": stop}
        seed = options.pop("seed", 0)
        alone = [
            generate(*models, [prompt], seed=seed + i, **options)[0]
            for i, prompt in enumerate(prompts)
        ]
        assert len(set(map(len, alone))) > 2
        for batch_size in (2, 5):
            written = generate(*models, prompts, seed=seed, batch_size=batch_size, **options)
            assert written == alone, (batch_size, options)


def test_stop_strings_end_a_text_and_are_not_part_of_it(models):
    (full,) = generate(*models, ["Hello"], patcher=RULES[0], max_new_bytes=60)
    assert len(full) == 60
    stop = full[30:33]
    expected = full[: full.index(stop)]
    for draft_bytes in (0, 7):
        options = {"patcher": RULES[0], "max_new_bytes": 60, "draft_bytes": draft_bytes}
        assert generate(*models, ["Hello"], stop=["☃", stop], **options) == [expected]
    assert generate(*models, ["Hello"], stop=[b"\0no\0"], **options) == [full]


@pytest.mark.parametrize("first", [0, 1])
def test_of_stops_that_end_together_the_longest_is_left_out(models, first):
    """A task of the harness with the stops "Q:" and "\\n\\nQ:" would keep two newlines, or not,
    depending on which it names first."""
    (full,) = generate(*models, ["Hello"], patcher=RULES[0], max_new_bytes=60)
    stops = [full[30:34], full[33:34] + b"\0never", full[32:34]]
    at = full.index(stops[2])
    assert full.index(stops[0]) == at - 2  # else they do not end together
    order = stops if first == 0 else stops[::-1]
    for draft_bytes in (0, 7):
        options = {"patcher": RULES[0], "max_new_bytes": 60, "draft_bytes": draft_bytes}
        assert generate(*models, ["Hello"], stop=order, **options) == [full[:30]]


def test_streamed_pieces_are_the_text_and_hold_stops_back(models):
    (full,) = generate(*models, ["Hello"], patcher=RULES[0], max_new_bytes=60)
    stop = full[30:33] + b"\0never"
    pieces = [
        piece[0][1]
        for piece in stream(
            *models,
            ["Hello"],
            sampling=Sampling(),
            patcher=RULES[0],
            max_new_bytes=60,
            stop=[stop],
            seed=0,
            draft_bytes=0,
            reset_at_newline=False,
        )
    ]
    assert b"".join(pieces) == full
    assert pieces[30] == b"" and max(map(len, pieces)) > 1  # held back, then given at once
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    said = "".join(map(decoder.decode, pieces)) + decoder.decode(b"", True)
    assert said == full.decode(errors="replace")


def test_eos_ends_a_text(models):
    blt, entropy_model = models
    bias = torch.zeros(260)
    bias[EOS_ID] = 1e4
    hook = blt.local_decoder.output.register_forward_hook(lambda *call: call[-1] + bias)
    try:
        assert generate(blt, entropy_model, ["a", "b"], patcher=RULES[0]) == [b"", b""]
    finally:
        hook.remove()


@pytest.mark.parametrize("how", [{}, {"draft_bytes": 3}, {"temperature": 1.0}, {"top_p": 0.5}])
def test_models_that_give_no_numbers_write_nothing(models, how):
    """Neither EOS nor one byte forever, which the largest of several NaN would be."""
    for broken, name in zip(models, ("model", "entropy_model"), strict=True):
        output = broken.output if name == "entropy_model" else broken.local_decoder.output
        kept = output.weight.detach().clone()
        try:
            with torch.no_grad():
                output.weight[EOS_ID if how else 100] = math.nan
            with pytest.raises(FloatingPointError, match=f"^{name}: gave an? .* not a number"):
                generate(*models, ["a", "b"], patcher=RULES[0], max_new_bytes=9, **how)
        finally:
            with torch.no_grad():
                output.weight.copy_(kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature: must be 0 or more"),
        ({"batch_size": 0}, "batch_size: must be 1 or more"),
        ({"top_k": 0}, "top_k: must be at least 1"),
        ({"top_p": 1.5}, "top_p: must be more than 0"),
        ({"stop": [""]}, "stop: an empty string"),
        ({"stop": "."}, "stop: must be a list of texts"),
        ({"max_new_bytes": -1}, "max_new_bytes: must be 0 or more"),
        ({"seed": -1}, "seed: must be 0 or more"),
        ({"draft_bytes": 300}, "draft_bytes: must be 0 to 255"),
        ({"draft_bytes": 2, "temperature": 1.0}, "draft_bytes: drafts are checked"),
        ({"patcher": None}, "patcher: the checkpoint names no boundary rule"),
    ],
)
def test_arguments_that_make_no_sense(models, options, message):
    with pytest.raises(ValueError, match=message):
        generate(*models, ["a"], **{"patcher": RULES[0], **options})
    with pytest.raises(ValueError, match="prompts: must be a list of texts"):
        generate(*models, "a", patcher=RULES[0])


class Adapted(torch.nn.Module):
    """A layer with an adapter beside it, which offers the weight as its own."""

    def __init__(self, base: torch.nn.Linear):
        super().__init__()
        self.base, self.adapter = base, torch.nn.Linear(base.in_features, base.out_features)
        self.weight = base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.adapter(x)


def test_layers_that_are_more_than_their_weights_are_refused(models):
    blt, entropy_model = models
    block = blt.global_transformer.layers[0].attention
    plain, block.wq = block.wq, Adapted(block.wq)
    try:
        with pytest.raises(TypeError, match=r"attention\.wq is a layer of the type Adapted"):
            generate(blt, entropy_model, ["a"], patcher=RULES[0])
    finally:
        block.wq = plain
    hook = entropy_model.layers[1].feed_forward.w2.register_forward_hook(lambda *_: None)
    try:
        with pytest.raises(TypeError, match=r"layers\.1\.feed_forward\.w2 is a layer with hooks"):
            generate(blt, entropy_model, ["a"], patcher=RULES[0])
        with pytest.raises(TypeError, match=r"feed_forward\.w2"):
            _ = entropy_model._compiled_entropies
    finally:
        hook.remove()


def test_nothing_to_write(models):
    assert generate(*models, [], patcher=RULES[0]) == []
    assert generate(*models, ["a"], patcher=RULES[0], max_new_bytes=0) == [b""]


def test_a_batch_that_is_too_large_is_told_in_a_sentence(models, monkeypatch):
    def no_memory(*_: object):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Writer, "write", no_memory)
    with pytest.raises(torch.OutOfMemoryError, match="batch_size: there is no memory to write"):
        generate(*models, ["a"], patcher=RULES[0])
