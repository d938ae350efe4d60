"""The convolutional entropy model against its definition in whole numbers, token by token."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.texts import topics
from support.tiny import conv_model

from model import ConvEntropyConfig, ConvEntropyModel, load_entropy_model, save_entropy_model
from model.checkpoints.entropy_model import CheckpointError, computed_in, fingerprint
from model.tokenizer import VOCAB_SIZE, encode_documents

Batch = tuple[np.ndarray, np.ndarray]
GOLDEN = 0x9E3779B97F4A7C15


def texts() -> list[bytes]:
    return [b"a", b"", *(text.encode()[:150] for _, text in topics()[:4]), "ä€😀\n\n".encode()]


def packed(model: ConvEntropyModel, batch: Batch) -> torch.Tensor:
    return model.entropies_packed(torch.from_numpy(batch[0]), torch.from_numpy(batch[1]))


def dense(model: ConvEntropyModel, tokens: list[int]) -> list[float]:
    """Entropies of one segment, in Python's and numpy's whole numbers."""
    config = model.config
    weights = {name: tensor.numpy().astype(np.int64) for name, tensor in model.tensors().items()}
    layers: list[list[np.ndarray]] = [[] for _ in range(len(config.taps) + 1)]
    entropies = []
    for i, token in enumerate(tokens):
        x = weights["embeddings_bias"] + weights["embeddings"][token]
        for order in range(2, config.max_order + 1):
            key = 0
            for j in range(i - order + 1, i + 1):
                key = key << 9 | (tokens[j] if j >= 0 else 0)
            hashed = (key * GOLDEN % 2**64) >> (64 - config.table_bits)
            x = x + weights["embeddings"][VOCAB_SIZE + (order - 2) * 2**config.table_bits + hashed]
        layers[0].append(x.clip(0, 127))
        for n, distances in enumerate(config.taps):
            zeros = np.zeros_like(layers[0][0])
            seen = [layers[n][i - d] if d <= i else zeros for d in distances]
            total = weights[f"layer_{n}"] @ np.concatenate(seen) + weights[f"layer_{n}_bias"]
            rounded = [round(int(t) / 256) for t in total]  # halves to even, as torch
            layers[n + 1].append(np.array(rounded).clip(0, 127))
        read = np.concatenate([layer[i] for layer in layers])
        total = int((weights["output"] @ read + weights["output_bias"])[0])
        entropies.append(max(total, 0) / (64 * 256))
    return entropies


@pytest.mark.parametrize("changes", [{}, {"max_order": 1}, {"taps": ()}, {"taps": ((7,), (0, 0))}])
def test_entropies_are_those_of_the_definition(changes):
    model = conv_model(**changes)
    batch = encode_documents(texts())
    parts = np.split(batch[0], np.cumsum(batch[1])[:-1])
    expected = [h for part in parts for h in dense(model, part.tolist())]
    h_T = packed(model, batch)
    assert h_T.tolist() == expected  # to the bit
    assert len(set(expected)) > 100


def test_the_largest_sums_are_exact():
    config = ConvEntropyConfig(dim=128, table_bits=4, taps=((0, 1, 2, 3, 4, 5, 6, 7),))
    weights = {n: torch.full(size, 127, dtype=d) for n, (size, d) in config.shapes.items()}
    weights["layer_0"][::2] = -127
    weights["layer_0_bias"][:] = 2**15 - 1
    model = ConvEntropyModel(config, weights)
    h_T = packed(model, encode_documents([b"some text"]))
    assert h_T.tolist() == dense(model, encode_documents([b"some text"])[0].tolist())
    with pytest.raises(ValueError, match="not exact in float32"):
        ConvEntropyConfig(dim=256, taps=((0, 1, 2, 3, 4),))


@pytest.mark.parametrize("block", [5, 64])
def test_blocks_threads_and_precision_change_nothing(monkeypatch, block):
    model = conv_model(dim=64)
    batch = encode_documents(texts())
    expected = packed(model, batch)
    monkeypatch.setattr(ConvEntropyModel, "block_tokens", block)
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.set_num_threads(2)
        assert torch.equal(packed(model, batch), expected)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.set_num_threads(before[1])


def test_an_entropy_depends_on_the_tokens_within_reach():
    model = conv_model()
    reach = model.order
    assert reach == 6 + 1 + 5
    random = np.random.default_rng(0)
    tokens = torch.from_numpy(random.integers(4, 260, (20, 60)))
    h = model.entropies(tokens)
    other = tokens.clone()
    other[:, 20] = 4 + (tokens[:, 20] - 3) % 256
    changed = (model.entropies(other) != h).any(0).nonzero()[:, 0].tolist()
    assert min(changed) == 20 and max(changed) == 20 + reach - 1


def test_save_and_load(tmp_path: Path):
    model = conv_model()
    save_entropy_model(model, tmp_path)
    loaded = load_entropy_model(tmp_path)
    assert isinstance(loaded, ConvEntropyModel) and loaded.config == model.config
    batch = encode_documents(texts())
    assert torch.equal(packed(loaded, batch), packed(model, batch))
    assert fingerprint(loaded) == fingerprint(model) and computed_in(loaded) == "cpu float32"
    assert fingerprint(conv_model(taps=((0, 1), (0, 3, 4)))) != fingerprint(model)
    for layout in ("published", "transformers"):
        with pytest.raises(CheckpointError, match="cannot hold a convolutional entropy model"):
            save_entropy_model(model, tmp_path / layout, layout=layout)


def test_what_cannot_be_loaded(tmp_path: Path):
    from safetensors.torch import save_file

    model = conv_model()
    whole = model.tensors()
    for number, (change, message) in enumerate(
        (
            ({"layer_0": whole["layer_0"].float()}, "layer_0: must be"),
            ({"layer_1": whole["layer_1"][:1]}, "layer_1: must be"),
            ({"output": torch.full_like(whole["output"], -128)}, "output: holds -128"),
            ({"layer_7": whole["layer_0"].clone()}, "layer_7: is missing, or not a weight"),
        )
    ):
        save_entropy_model(model, tmp_path / str(number))
        save_file(whole | change, tmp_path / str(number) / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_entropy_model(tmp_path / str(number))
    config = tmp_path / "0" / "config.json"
    config.write_text(config.read_text().replace('"conv"', '"future"'))
    with pytest.raises(CheckpointError, match="kind 'future' is unknown to this release"):
        load_entropy_model(tmp_path / "0")
    for shape, message in (
        ({"dim": 0}, "dim: must be 1 to 512"),
        ({"max_order": 7}, "max_order: must be 1 to 6"),
        ({"taps": ((),)}, "taps: each layer needs"),
        ({"taps": ((-1,),)}, "taps: each layer needs"),
        ({"taps": ((0, 10**9),)}, "taps: each layer needs"),
    ):
        with pytest.raises(ValueError, match=message):
            ConvEntropyConfig(**shape)
