"""Bits per byte of the entropy model of a shard set, where that can be known.

Shards hold the entropies of predictions, which tell how sure a model is, and not how right. Its
loss takes the model itself: the one that the manifest names, as long as it is the same.
"""

from math import log

from model.checkpoints.entropy_model import fingerprint, load_entropy_model, to_device
from model.checkpoints.files import CheckpointError
from model.entropy_model import EntropyModel
from model.tokenizer import encode_documents
from pipeline.evaluate.likelihood import predict
from pipeline.report.agreement import ModelLoss
from pipeline.shards.shard_set import ShardSet

NGRAM = "ngram"
"""The source of a model that was fitted for its set."""


def model_loss(shards: ShardSet, texts: list[bytes]) -> ModelLoss:
    """Run the entropy model of a set on some texts.

    Args:
        texts: UTF-8; each is read from its beginning.
    """
    identity = shards.entropy_model
    if not shards.patcher.reads_entropies:
        return ModelLoss(None, f"the {shards.patcher.rule} rule reads no entropies")
    if identity is None or identity.source is None:
        return ModelLoss(None, "the set does not name its model")
    if identity.source == NGRAM:
        return ModelLoss(None, "an n-gram model gives entropies and no probabilities")
    if identity.reset_at_newline:
        return ModelLoss(None, "the model began anew at each newline, which is not measured")
    try:
        model = load_entropy_model(identity.source, device="cpu", dtype="stored")
    except CheckpointError as error:
        return ModelLoss(None, str(error))
    if not isinstance(model, EntropyModel):
        return ModelLoss(None, f"{model.title} gives entropies and no probabilities")
    if identity.fingerprint not in (None, fingerprint(model)):
        return ModelLoss(None, f"{identity.source} is another model today: its fingerprint differs")
    tokens_T, lengths_D = encode_documents(texts)
    ready = to_device(model)
    assert isinstance(ready, EntropyModel)
    nats = float(predict(ready, tokens_T, lengths_D, None, None).nats_T.sum(dtype="f8"))
    size = sum(map(len, texts))
    return ModelLoss(nats / (size * log(2)) if size else None, "" if size else "there is no text")
