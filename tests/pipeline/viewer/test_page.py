"""The viewer says of a document how it was patched: without a browser.

Tests import pages themselves: gradio takes seconds that processes without such a test can save.
"""

from support import tiny
from support.texts import write_jsonl

from model import Patcher
from pipeline.shards.random_access import DocumentIndex
from pipeline.viewer.config import PatchViewerConfig
from pipeline.viewer.patched_text import view_text


def test_a_threshold_of_zero_is_named_as_any_other(tmp_path):
    from pipeline.viewer.browse_tab import show_document

    write_jsonl(tmp_path / "in" / "a.jsonl", [("a", "some text")])
    model = tiny.entropy_model()
    shards = tiny.make_shards(tmp_path / "set", tmp_path / "in", model, Patcher(0.5))
    for anew, rule in ((None, "global (threshold 0.5)"), (Patcher(0.0), "global (threshold 0.0)")):
        place, _ = show_document(DocumentIndex(shards), 0, anew)
        assert f"patched by: {rule} on entropies of tiny (fingerprint " in place


def test_the_page_begins_with_patches_as_in_training():
    from pipeline.viewer.type_tab import EXAMPLES

    begun = PatchViewerConfig()
    view = view_text(next(iter(EXAMPLES.values())), *begun.entropy_model, Patcher(begun.threshold))
    assert 4.3 < len(view.data) / len(view.patch_lengths_P) < 4.7


def test_a_typed_number_is_the_one_that_its_link_gives():
    import gradio as gr

    from pipeline.viewer import controls  # noqa: F401, which limits numbers

    place = gr.Number(0, precision=0, minimum=0)
    for typed, shown in ((1.7, 2), (2.2, 2), (-3, 0), (None, 0)):
        assert place.preprocess(typed) == shown == place.postprocess(shown)
    assert gr.Slider(-2, 6, 2.0, step=0.001).preprocess(1.335442066192627) == 1.335442066192627
