"""Held-out texts with noise and in other scripts, as an experiment writes them."""

import json
import sys
from importlib.util import find_spec

import pytest

from pipeline.errors import ConfigError
from pipeline.evaluate.tasks.noise import noised
from pipeline.statistics.writing_systems import script_of
from train.compare.noise import KINDS, OTHER_SCRIPTS, write_noised
from train.compare.other_scripts import sentences, translations

DOCUMENTS = [("a", "The first text.\nTwo lines."), ("b/ü#3", "Größe und мир"), ("empty", "")]


def read(path) -> dict[str, str]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["id"]: line["text"] for line in lines}


def test_each_kind_has_a_file_with_the_same_documents(tmp_path):
    paths = write_noised(iter(DOCUMENTS), tmp_path / "text", KINDS)
    assert list(paths) == list(KINDS) and len(set(paths.values())) == len(KINDS)
    for kind, path in paths.items():
        if kind != OTHER_SCRIPTS:
            assert read(path) == {name: noised(text, kind, name) for name, text in DOCUMENTS}
    # A document's noise does not depend on the others, nor on which kinds are asked for.
    again = write_noised(DOCUMENTS[1:2], tmp_path / "again", ["drop"])
    assert read(again["drop"]) == {"b/ü#3": read(paths["drop"])["b/ü#3"]}


@pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")
def test_other_scripts_are_real_sentences():
    found = translations()
    assert translations() == found
    scripts = {script_of(text.encode()) for text in found.values()}
    assert len(scripts) >= 4 and "Latin" not in scripts
    assert sum(len(text.encode()) for text in found.values()) > 20_000
    lines = [line for text in found.values() for line in text.splitlines()]
    assert sum(" " in line for line in lines) > len(lines) / 4  # sentences beside words
    code = [line for line in lines if any(part in line for part in ("export", "=>", "var ", "`"))]
    assert not code


@pytest.mark.parametrize("quote", ["`", '"'])
def test_sentences_are_read_whatever_quotes_a_compiler_chose(quote):
    names = [r"Русский", r"Пауза \"x\"", "Stop", r"\u0414\u0430\nнет", "", "obj", "ab ц"]
    module = ",".join(f"k{i}:{quote}{name}{quote}" for i, name in enumerate(names))
    assert sentences(f"var e={{{module}}};export{{e as default}};") == [
        "Русский",
        'Пауза "x"',
        "Да\nнет",
    ]


def test_without_gradio_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"install blt-titan\[viewer\], or leave them out"):
        write_noised(DOCUMENTS, tmp_path, [OTHER_SCRIPTS])
    # Noise needs nothing.
    assert write_noised(DOCUMENTS, tmp_path, ["swap"])["swap"].exists()


def test_a_gradio_without_translations_is_named(monkeypatch, tmp_path):
    (tmp_path / "gradio" / "templates" / "frontend" / "assets").mkdir(parents=True)
    (tmp_path / "gradio" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gradio", raising=False)
    with pytest.raises(ConfigError, match=r"frontend/assets holds 0 of them; leave them out"):
        translations()
