"""What the module says on screen, gathered for translators: `make translations`.

Words stand in the forms (.ui) and in `_("...")` of the module's Python, under the contexts by which Slicer looks them
up: the form's class, and the file's name with its package. What the library says (messages, the state of the panel) is
English alone.
"""

from __future__ import annotations

import ast
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MedVLMReader"
TEMPLATE = MODULE / "Resources" / "Translations" / "MedVLMReader_en-US.ts"
LEFT_OUT = {"nodeTypes"}
"""Properties whose strings are names of classes."""


def of_form(path: Path) -> tuple[str, list[str]]:
    """Context and words of a form."""
    root = ElementTree.parse(path).getroot()
    found = [
        one.text
        for held in root.iter("property")
        if held.get("name") not in LEFT_OUT
        for one in held.findall("string")
        if one.text and one.get("notr") != "true"
    ]
    return root.findtext("class") or path.stem, found


def of_script(path: Path) -> tuple[str, list[str]]:
    """Context and words of a file: what `_` is called with. ValueError where that is not written out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
            (words,) = node.args
            if not isinstance(words, ast.Constant):
                raise ValueError(f"{path.name}:{node.lineno}: write out what is translated, with {{}} in it")
            found.append(str(words.value))
    package = f"{path.parent.name}." if (path.parent / "__init__.py").exists() else ""
    return package + path.stem, found


def words() -> dict[str, list[str]]:
    """Context -> its words, each once."""
    found: dict[str, list[str]] = {}
    forms = [of_form(path) for path in sorted(MODULE.rglob("*.ui"))]
    scripts = [path for path in sorted(MODULE.rglob("*.py")) if "Testing" not in path.parts]
    for context, said in [*forms, *(of_script(path) for path in scripts)]:
        if said:
            found[context] = list(dict.fromkeys([*found.get(context, []), *said]))
    return found


def template() -> str:
    """The .ts file for translators, in the order of the files."""
    root = ElementTree.Element("TS", version="2.1", language="en_US", sourcelanguage="en_US")
    for name, said in words().items():
        context = ElementTree.SubElement(root, "context")
        ElementTree.SubElement(context, "name").text = name
        for text in said:
            message = ElementTree.SubElement(context, "message")
            ElementTree.SubElement(message, "source").text = text
            ElementTree.SubElement(message, "translation", type="unfinished")
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE TS>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def main() -> int:
    """Write the template."""
    TEMPLATE.parent.mkdir(parents=True, exist_ok=True)
    TEMPLATE.write_text(template(), encoding="utf-8")
    print(TEMPLATE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
