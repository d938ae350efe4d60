r"""Text in scripts other than Latin that lies on machines which have this project.

The viewer needs gradio, whose interface is translated into many languages (Apache-2.0). Its package
has the sentences in compiled modules of JavaScript, one per language, from which they are read::

    var e=`Русский`,n={audio:`Аудио`,pause:`Пауза`},…   →   Русский \n Аудио \n Пауза

That is 2 to 7 kB per language: words of an interface, which are no literature, but enough to see
how a model reads bytes that it hardly met.
"""

import importlib.util
import re
import unicodedata
from pathlib import Path

from pipeline.errors import ConfigError

LANGUAGES = {
    **{"ar": "Arabic", "ckb": "Kurdish", "fa": "Persian", "ur": "Urdu"},
    **{"ru": "Russian", "uk": "Ukrainian", "he": "Hebrew", "hi": "Hindi", "ta": "Tamil"},
    **{"th": "Thai", "ja": "Japanese", "ko": "Korean", "zh-CN": "Chinese"},
}
"""Languages that are written in other scripts, by the beginning of their module's name."""
FEWEST = 4
"""Languages without which the text is not what an experiment asks for."""
_STRING = re.compile(r'`((?:[^`\\]|\\.)*)`|"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_CONTROLS = {"n": "\n", "t": "\t"}


def translations() -> dict[str, str]:
    """The sentences of gradio's interface, a line each, by language.

    Raises:
        ConfigError: gradio is not installed, or its package has them no longer.
    """
    spec = importlib.util.find_spec("gradio")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "noise: other_scripts are read from gradio's translations, and gradio is not "
            "installed; install blt-titan[viewer], or leave them out of the experiment's noise"
        )
    folder = Path(spec.origin).parent / "templates" / "frontend" / "assets"
    found = {}
    for code, language in LANGUAGES.items():
        # Names end in a hash; other modules may begin alike, but hold no such sentences.
        modules = sorted(folder.glob(f"{code}-*.js"))
        lines = dict.fromkeys(
            line for path in modules for line in sentences(path.read_text(encoding="utf-8"))
        )
        if lines:
            found[language] = "\n".join(lines)
    if len(found) < FEWEST:
        raise ConfigError(
            f"noise: other_scripts are read from gradio's translations, but {folder} holds "
            f"{len(found)} of them; leave them out of the experiment's noise"
        )
    return found


def sentences(module: str) -> list[str]:
    """The strings of a JavaScript module whose letters are mostly not Latin, in their order."""
    strings = (match[1] or match[2] or "" for match in _STRING.finditer(module))
    return [text for text in map(_unescaped, strings) if _is_other(text)]


def _unescaped(literal: str) -> str:
    def character(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else _CONTROLS.get(match[2], match[2])

    return _ESCAPE.sub(character, literal)


def _is_other(text: str) -> bool:
    letters = [c for c in text if c.isalpha()]
    latin = sum(unicodedata.name(c, "").startswith("LATIN") for c in letters)
    return 2 * latin < len(letters)
