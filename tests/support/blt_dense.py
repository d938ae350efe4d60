"""BLT by its definition: one row at a time, every mask written out in full. Slow, and for tests.

Written from the published model's facts and names, not from ``model/``, so that the two can be
held against each other.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model import BLTConfig

EOS = 2
PADDING = -1
PRIMES = (
    *(1000000007, 5915587277, 1500450271, 3267000013, 5754853343, 4093082899, 9576890767),
    *(3628273133, 2860486313, 5463458053, 3367900313),
)

Weights = dict[str, Tensor]


@dataclass
class Masks:
    """Who sees whom in one row of n bytes and P patches; queries first."""

    bytes_bytes: Tensor
    patches_bytes: Tensor
    patches_patches: Tensor
    bytes_patches: Tensor
    patch_of_byte: Tensor
    patches: int


def masks_of(config: BLTConfig, tokens: list[int], lengths: list[int]) -> Masks:
    n = len(tokens)
    lengths = [length for length in lengths if length]
    patch_of_slot = [p for p, length in enumerate(lengths) for _ in range(length)]
    assert lengths[0] == 1 and len(patch_of_slot) in (n, n + 1)
    if len(patch_of_slot) == n:
        # The next token is not said to start a patch; only token 1 always does.
        following = len(lengths) if config.last_reads_last_patch else patch_of_slot[-1]
        patch_of_slot.append(max(following, 1))
    patch_of_byte = torch.tensor(patch_of_slot[:n])
    read_by_byte = torch.tensor(patch_of_slot[1:]) - 1

    document_of_byte = torch.tensor([tokens[:i].count(EOS) for i in range(n)])
    ends = {p for p, token in zip(patch_of_slot, tokens, strict=False) if token == EOS}
    document_of_patch = torch.tensor([sum(e < p for e in ends) for p in range(len(lengths))])

    def apart(q: Tensor, kv: Tensor, window: int | None) -> Tensor:
        distance = q[:, None] - kv[None]
        return (distance >= 0) & (distance < (window or n))

    def together(q: Tensor, kv: Tensor) -> Tensor:
        return q[:, None] == kv[None]

    byte, patch = torch.arange(n), torch.arange(len(lengths))
    group_of_patch = document_of_patch * (not config.cross_attn_across_documents)
    return Masks(
        apart(byte, byte, config.local_attention_window_len)
        & together(document_of_byte, document_of_byte),
        apart(patch, patch_of_byte, config.cross_attn_window_encoder)
        & together(group_of_patch, group_of_patch[patch_of_byte]),
        apart(patch, patch, None) & together(document_of_patch, document_of_patch),
        apart(read_by_byte, patch, config.cross_attn_window_decoder)
        & together(group_of_patch[read_by_byte], group_of_patch),
        patch_of_byte,
        len(lengths),
    )


def plain_hash(gram: list[int], function: int, rows: int) -> int:
    """The row of an n-gram, oldest token first, in exact arithmetic wrapped to 64 bits."""
    value = sum(token * PRIMES[function] ** j for j, token in enumerate(gram)) % 2**64
    return (value - 2**64 if value >= 2**63 else value) % rows


def hash_rows(config: BLTConfig, tokens: list[int], function: int, size: int) -> list[int]:
    rows = []
    for i in range(len(tokens)):
        gram = tokens[max(i - size + 1, 0) : i + 1]
        if not config.hash_across_documents and EOS in gram[:-1]:
            last = max(j for j, token in enumerate(gram[:-1]) if token == EOS)
            gram = gram[last + 1 :]
        gram = [0] * (size - len(gram)) + gram
        rows.append(plain_hash(gram, function, config.encoder_hash_byte_group_vocab))
    return rows


class DenseBLT:
    def __init__(self, config: BLTConfig, weights: Weights):
        """``weights``: by their published names; gradients flow to them."""
        self.c, self.w = config, {name: weight.float() for name, weight in weights.items()}

    def norm(self, x: Tensor, name: str) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.c.norm_eps).sqrt()
        return x / scale * self.w[f"{name}.weight"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T

    def rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        exponents = torch.arange(half, dtype=torch.float32) * 2 / x.shape[-1]
        frequency = 1.0 / self.c.rope_theta**exponents
        angle = torch.arange(len(x), dtype=torch.float32)[:, None] * frequency
        a, b = x[:, 0::2], x[:, 1::2]
        pairs = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos())
        return torch.stack(pairs, -1).flatten(-2)

    def attend(
        self, name: str, q: Tensor, kv: Tensor, seen: Tensor, heads: int, rotary: bool
    ) -> Tensor:
        dim = len(self.w[f"{name}.wq.weight"]) // heads
        group = heads // (len(self.w[f"{name}.wk.weight"]) // dim)
        qs, ks, vs = (
            self.linear(x, f"{name}.w{n}").split(dim, -1)
            for x, n in ((q, "q"), (kv, "k"), (kv, "v"))
        )
        out = []
        for head in range(heads):
            q_h, k_h, v_h = qs[head], ks[head // group], vs[head // group]
            if rotary:
                q_h, k_h = self.rotate(q_h), self.rotate(k_h)
            score = (q_h @ k_h.T / math.sqrt(dim)).masked_fill(~seen, -1e30)
            weight = score.softmax(-1) * seen  # 0 for who sees nobody
            out.append(weight @ v_h)
        return self.linear(torch.cat(out, -1), f"{name}.wo")

    def block(self, name: str, x: Tensor, seen: Tensor, heads: int) -> Tensor:
        y = self.norm(x, f"{name}.attention_norm")
        x = x + self.attend(f"{name}.attention", y, y, seen, heads, rotary=True)
        y = self.norm(x, f"{name}.ffn_norm")
        gate = self.linear(y, f"{name}.feed_forward.w1")
        y = gate * gate.sigmoid() * self.linear(y, f"{name}.feed_forward.w3")
        return x + self.linear(y, f"{name}.feed_forward.w2")

    def cross(self, name: str, x: Tensor, kv: Tensor, seen: Tensor) -> Tensor:
        q, kv = (
            self.norm(x, f"{name}.cross_attn_norm_q"),
            self.norm(kv, f"{name}.cross_attn_norm_kv"),
        )
        return 2 * x + self.attend(name, q, kv, seen, self.c.cross_attn_nheads, rotary=False)

    def embed(self, tokens: list[int]) -> Tensor:
        x = self.w["local_encoder.tok_embeddings.weight"][tokens]
        sizes = self.c.encoder_hash_byte_group_size
        for f in range(self.c.encoder_hash_byte_group_nb_functions):
            for s, size in enumerate(sizes):
                table = self.w[f"encoder_hash_tok_embedding.{f * len(sizes) + s}.weight"]
                x = x + table[hash_rows(self.c, tokens, f, size)]
        return x

    def encode(self, x: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """Byte states ``[n, dl]``; patches ``[P * k, dl]``, with k = 1 if they are only pooled."""
        c, k = self.c, self.c.cross_attn_k
        seen = masks.patches_bytes.repeat_interleave(k, 0)
        patches = None
        for i in range(c.n_layers_local_encoder):
            layer = f"local_encoder.layers.{i}"
            x = self.block(layer, x, masks.bytes_bytes, c.n_heads_local_encoder)
            if not c.cross_attn_all_layers_encoder and i < c.n_layers_local_encoder - 1:
                continue
            if patches is None:  # pooled once; without cross attention, that is all
                pooled = []
                for p in range(masks.patches):
                    own = x[masks.patch_of_byte == p]
                    pooled.append(own.amax(0) if len(own) else torch.zeros(c.dim_local))
                if not c.cross_attn_encoder:
                    return x, torch.stack(pooled)
                patches = self.linear(
                    torch.stack(pooled), "local_encoder.patch_embedding_projection"
                ).reshape(-1, c.dim_local)
            j = i if c.cross_attn_all_layers_encoder else 0
            patches = self.cross(f"local_encoder.cross_attn_layers.{j}", patches, x, seen)
        assert patches is not None
        return x, patches

    def latent(self, patches: Tensor, masks: Masks) -> Tensor:
        z = patches.reshape(masks.patches, -1)
        if z.shape[-1] != self.c.dim_global:
            z = self.linear(z, "global_transformer.token_embedding_projection")
        for i in range(self.c.n_layers_global):
            layer = f"global_transformer.layers.{i}"
            z = self.block(layer, z, masks.patches_patches, self.c.n_heads_global)
        return z

    def decode(self, x: Tensor, z: Tensor, masks: Masks) -> Tensor:
        c = self.c
        patches, projection = z, "local_decoder.patch_embedding_projection"
        if c.projects_equal_widths:
            patches = self.linear(z, projection)
        if not c.cross_attn_decoder:
            x = x + masks.bytes_patches.float() @ patches  # one patch for each byte
            for i in range(c.n_layers_local_decoder):
                layer = f"local_decoder.layers.{i}"
                x = self.block(layer, x, masks.bytes_bytes, c.n_heads_local_decoder)
            return self.linear(self.norm(x, "local_decoder.norm"), "local_decoder.output")
        patches = patches.reshape(-1, c.dim_local)
        seen = masks.bytes_patches.repeat_interleave(c.cross_attn_k, 1)
        for i in range(c.n_layers_local_decoder):
            if i == 0 or c.cross_attn_all_layers_decoder:
                x = self.cross(f"local_decoder.cross_attn_layers.{i}", x, patches, seen)
            layer = f"local_decoder.layers.{i}"
            x = self.block(layer, x, masks.bytes_bytes, c.n_heads_local_decoder)
        return self.linear(self.norm(x, "local_decoder.norm"), "local_decoder.output")

    def row(self, tokens: list[int], lengths: list[int]) -> Tensor:
        masks = masks_of(self.c, tokens, lengths)
        x, patches = self.encode(self.embed(tokens), masks)
        return self.decode(x, self.latent(patches, masks), masks)

    def __call__(self, tokens_BN: Tensor, lengths_BP: Tensor) -> Tensor:
        """Logits ``[B, N, vocabulary]``; 0 at padding, which stands at the end of rows."""
        logits = torch.zeros(*tokens_BN.shape, self.c.vocab_size)
        for b, row in enumerate(tokens_BN):
            tokens = row[row != PADDING].tolist()
            if tokens:
                logits[b, : len(tokens)] = self.row(tokens, lengths_BP[b].tolist())
        return logits
