"""The texts under the fields of dataclasses, for the help of flags."""

import ast
import inspect
import textwrap


def field_docstrings(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass, without marks of code, by the field's name."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    texts: dict[str, str] = {}
    for declared, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(declared, ast.AnnAssign) and isinstance(declared.target, ast.Name):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            value = text.value.value if is_text else ""  # type: ignore[attr-defined]
            texts[declared.target.id] = " ".join(str(value).replace("``", "").split())
    return texts
