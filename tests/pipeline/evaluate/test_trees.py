"""Documents that begin alike, read as trees, against each of them alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.no_values import gpu_paths, without_values
from support.texts import topics

from model import Patcher
from model.tokenizer import encode_documents
from pipeline.errors import PipelineError
from pipeline.evaluate import likelihood, trees
from pipeline.evaluate.answers import Questions, RowQuestions, only
from pipeline.evaluate.likelihood import Predictor
from pipeline.evaluate.models import Patching
from pipeline.evaluate.reading import read_rows, read_tree_rows
from pipeline.evaluate.rows import RowSize, cut_windows, fill_rows
from pipeline.evaluate.tree_entropies import TreeEntropies
from pipeline.evaluate.trees import fill_patch_rows, fill_tree_rows, grow_trees
from pipeline.patch.scoring import Scorer

EXAMPLES = "".join(f"Q: {text[50:200]}\nA: {text[:30]}\n\n" for _, text in topics()[:4])
QUESTIONS = [f"{EXAMPLES}Q: {text[100:230]}\nA:" for _, text in topics()[4:9]]
ANSWERS = (" yes", " no, it is the other one", " nobody knows", " größer")
DOCUMENTS = [
    *sorted((question + answer).encode() for question in QUESTIONS for answer in ANSWERS),
    *(b"nothing of these", b"x", "é".encode(), topics()[11][1].encode()[:700]),
]
SHAPES = {
    "usual": {},
    "all layers": {"n_layers_local_encoder": 2, "cross_attn_all_layers_encoder": True},
    "long n-grams": {"encoder_hash_byte_group_size": (2, 20), "hash_across_documents": True},
    "no hashes": {"encoder_hash_byte_group_size": ()},
    "no cross attention": {"cross_attn_encoder": False, "cross_attn_decoder": False},
    "no window": {"local_attention_window_len": None},
    "several patches": {"cross_attn_window_encoder": 2, "cross_attn_window_decoder": 2},
}


@pytest.fixture(scope="module")
def patched():
    patching = Patching(Patcher(tiny.THRESHOLD), tiny.entropy_model())
    tokens_T, lengths_D = encode_documents(DOCUMENTS)
    return tokens_T, lengths_D, patching(tokens_T, lengths_D)


def every_question(tokens_T: np.ndarray, lengths_D: np.ndarray, seed: int) -> Questions:
    """All tokens of all documents, in any order, and some that are not the documents' own."""
    ends_D = lengths_D.cumsum() - 1
    at_Q = np.delete(np.arange(len(tokens_T)), ends_D)
    at_Q = np.concatenate([at_Q, at_Q[::7]])
    token_Q = tokens_T[at_Q + 1].astype(np.int64)
    token_Q[-len(at_Q[::7]) :] = 70
    order = np.random.default_rng(seed).permutation(len(at_Q))
    return Questions(at_Q[order], token_Q[order])


@pytest.mark.parametrize("one_size", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_answers_are_those_of_each_document_alone(patched, name, one_size, monkeypatch):
    monkeypatch.setattr(likelihood, "GPU_TOKENS", 2048)
    monkeypatch.setattr(likelihood, "CPU_TOKENS", 512)
    model = tiny.blt(**SHAPES[name])
    questions = every_question(*patched[:2], seed=3)
    alone = Predictor(model, None)(*patched, None, questions=questions)
    predictor = Predictor(model, None, one_size=one_size)
    found = predictor.answer(*patched, questions)
    np.testing.assert_allclose(found.nats_T, alone.nats_T, atol=3e-4)
    assert (found.greedy_T == alone.greedy_T).mean() > 0.999
    of_all = sum(map(len, DOCUMENTS))
    if name == "several patches":
        assert predictor.work.tokens >= of_all
    else:
        assert predictor.work.tokens < 0.4 * of_all  # 20 of 24 share 700 bytes and more
    if one_size:
        ((tokens, patches),) = predictor.sizes.used
        assert predictor.work.computed_tokens == tokens * predictor.work.rows
        assert predictor.work.computed_patches == patches * predictor.work.rows
    # Batches do not matter, but for rounding.
    half = patched[1][:12].sum()
    few = Questions(*(x[questions.at_Q < half] for x in questions))
    patches = int((patched[2].cumsum() <= half).sum())
    again = predictor.answer(patched[0][:half], patched[1][:12], patched[2][:patches], few)
    expected = found.nats_T[questions.at_Q < half]
    np.testing.assert_allclose(again.nats_T, expected, atol=3e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_gpu_is_never_waited_for(patched):
    """On the meta device whatever needs a value of a tensor fails."""
    tokens_T, lengths_D, patch_lengths_P = patched
    starts_T = likelihood._marked(patch_lengths_P, len(tokens_T))
    branches = grow_trees(tokens_T, lengths_D, starts_T, RowSize(4096, 4096))
    rows = fill_tree_rows(branches, np.zeros(len(lengths_D), np.int64), 4096, tokens_T)
    patches = fill_patch_rows(rows, 2048, starts_T)
    windows = cut_windows(lengths_D[:4], None)
    packed = fill_rows(windows, np.zeros(4, np.int64), RowSize(4096, 2048), tokens_T, starts_T)
    asked = only(Questions(np.array([5]), np.array([9])))
    with gpu_paths(), torch.inference_mode():
        blt = without_values(tiny.blt())
        (logits_TV,) = read_tree_rows(blt, rows, patches)
        shape = rows.tokens_RT.shape
        questions = RowQuestions(asked, rows.at_X, rows.place_X, shape, blt.device)
        assert questions.answers(0, logits_TV).nats_N.is_meta
        (others_TV,) = read_rows(blt, packed, padded=True)
        assert logits_TV.shape == others_TV.shape == (4096, 260) and others_TV.is_meta
        scoring = TreeEntropies(without_values(tiny.entropy_model()))
        assert scoring._read(rows).shape == (4096,)


def test_no_questions():
    predictor = Predictor(tiny.blt(), None, one_size=True)
    nothing = np.zeros(0, np.int64)
    found = predictor.answer(*encode_documents([]), nothing, Questions(nothing, nothing))
    assert len(found.nats_T) == 0 and predictor.work.rows == 0


words = st.sampled_from([b"The sky is blue", b"The sky is", b" bright", b" and", b"!", b"e"])


@given(st.lists(st.lists(words, max_size=6).map(b"".join), min_size=1, max_size=9), st.data())
@settings(max_examples=200)
def test_branches_make_up_the_documents(documents, data):
    """Following the branches gives each document and its patches, whole patches are shared, and no
    tree is larger than asked for unless one document is."""
    tokens_T, lengths_D = encode_documents(sorted(documents))
    first_D = lengths_D.cumsum() - lengths_D
    drawn = data.draw(st.lists(st.booleans(), min_size=len(tokens_T), max_size=len(tokens_T)))
    starts_T = np.array(drawn)
    starts_T[first_D] = starts_T[first_D + 1] = True
    most = RowSize(data.draw(st.integers(10, 90)), data.draw(st.integers(5, 60)))
    branches = grow_trees(tokens_T, lengths_D, starts_T, most)
    token_path: list[int] = []
    start_path: list[bool] = []
    patches = 0
    for first, read, shared, of_branch in zip(*branches, strict=True):
        own = slice(first + shared, first + read)
        assert starts_T[first + shared] and read == lengths_D[first_D == first][0] - 1
        assert shared == 0 or shared >= trees.LEAST_SHARED
        assert of_branch == starts_T[own].sum() and shared < read
        token_path = token_path[:shared] + tokens_T[own].tolist()
        start_path = start_path[:shared] + starts_T[own].tolist()
        assert token_path == tokens_T[first : first + read].tolist()
        assert start_path == starts_T[first : first + read].tolist()
        patches = of_branch + (patches if shared else 0)
    first_N, tokens_N, patches_N = branches.trees()
    counts_N = np.diff(first_N, append=len(lengths_D))
    assert ((tokens_N <= most.tokens) | (counts_N == 1)).all()
    assert ((patches_N < most.patches) | (counts_N == 1)).all()
    assert patches_N[-1] == patches


def test_entropies_are_those_of_each_document_alone():
    model = tiny.entropy_model()
    documents = [document[len(EXAMPLES) - 100 :][:500] for document in DOCUMENTS[:20]]
    documents += [document[:500] for document in DOCUMENTS[20:]]
    tokens_T, lengths_D = encode_documents([*documents, b""])
    found = TreeEntropies(model)(tokens_T, lengths_D)
    expected = Scorer(model, Patcher(tiny.THRESHOLD)).entropies(tokens_T, lengths_D)
    ends_D = lengths_D.cumsum() - 1
    assert found.dtype == expected.dtype == np.float16 and not found[ends_D].any()
    found, expected = (np.delete(h_T, ends_D).astype(float) for h_T in (found, expected))
    np.testing.assert_allclose(found, expected, atol=1e-2)  # of float16: a step is 4e-3
    assert (found == expected).mean() > 0.99
    with torch.no_grad():
        model.output.weight[3] = torch.nan
    with pytest.raises(
        PipelineError, match="--entropy-model: gave an entropy that is not a number"
    ):
        TreeEntropies(model)(tokens_T, lengths_D)
