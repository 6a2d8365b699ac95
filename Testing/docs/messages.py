"""Every message that a user can meet, found in the library's source: what `ReaderError` and its like are given, what
`message` of a view's state is set to, and what tables of troubles hold."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "MedVLMReaderLib"
DIFFERS = "…"
"""Stands for what differs from time to time: a name, a number."""
TAKEN = {"ReaderError": 1, "Failed": 2, "ArgumentTypeError": 1}
"""What is raised or told -> how many of its first arguments make the message."""
SAID = "medvlmreader: "
"""What the command line's own messages begin with."""
RETURNED = {("failure", "said"), ("serving", "told"), ("pip_words", "trouble"), ("running", "_why")}
"""End of a module's name and function that returns a message, or one in a tuple with what to do."""
TABLES = {("pip_words", "TROUBLES")}
"""End of a module's name and table in it, of which every row ends with a message."""
MOST = 24
"""Ways to word one message; past that, what differs is left out."""


@dataclass(frozen=True)
class Message:
    """What is said, and where."""

    module: str
    line: int
    text: str


@dataclass
class Source:
    """A file's names: what its constants are, and what its functions return."""

    module: str
    tree: ast.Module
    constants: dict[str, ast.expr] = field(default_factory=dict)
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    imported: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, module: str) -> Source:
        found = cls(module, ast.parse(path.read_text(encoding="utf-8")))
        for node in found.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found.constants[node.targets[0].id] = node.value
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("MedVLMReaderLib."):
                found.imported |= {one.name: str(node.module).removeprefix("MedVLMReaderLib.") for one in node.names}
        for walked in ast.walk(found.tree):
            if isinstance(walked, ast.FunctionDef):
                found.functions.setdefault(walked.name, walked)
        return found


class Library:
    """All files of the library."""

    def __init__(self, folder: Path = LIBRARY) -> None:
        self.sources = {module_of(path, folder): Source.of(path, module_of(path, folder)) for path in scripts(folder)}
        every = [node for one in self.sources.values() for node in ast.walk(one.tree) if isinstance(node, ast.ClassDef)]
        heirs = [c.name for c in every for base in c.bases if isinstance(base, ast.Name) and base.id == "ReaderError"]
        self.taken = {**TAKEN, **dict.fromkeys(heirs, 1)}

    def messages(self) -> list[Message]:
        """All that can be said, each once a file, in the order of the files."""
        found: dict[tuple[str, str], Message] = {}
        for source in self.sources.values():
            every = [(call, self.said(source, call, function)) for call, function in calls(source.tree)]
            told: list[tuple[ast.expr | ast.stmt, list[str]]] = [*every, *self._returned(source)]
            told += [*self._shown(source)]
            told += [*self._listed(source)]
            for node, texts in told:
                for text in texts:
                    found.setdefault((source.module, text), Message(source.module, node.lineno, text))
        return list(found.values())

    def _returned(self, source: Source) -> Iterator[tuple[ast.Return, list[str]]]:
        """What functions that make messages return."""
        for name, function in source.functions.items():
            if (source.module.split(".")[-1], name) in RETURNED:
                for node in ast.walk(function):
                    if isinstance(node, ast.Return) and node.value is not None:
                        parts = node.value.elts[:2] if isinstance(node.value, ast.Tuple) else [node.value]
                        yield node, self._worded([self.texts(source, one, function) for one in parts])

    def _shown(self, source: Source) -> Iterator[tuple[ast.Assign, list[str]]]:
        """What a view's state is given as its message."""
        for function in [node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef)]:
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and any(ast.unparse(one) == "self.message" for one in node.targets):
                    yield node, self._worded([self.texts(source, node.value, function)])

    def _listed(self, source: Source) -> Iterator[tuple[ast.expr, list[str]]]:
        """The last element of every row of a table."""
        for node in source.tree.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Tuple):
                continue
            if (source.module.split(".")[-1], ast.unparse(node.target)) in TABLES:
                for row in node.value.elts:
                    assert isinstance(row, ast.Tuple)
                    yield row, self._worded([self.texts(source, row.elts[-1], None)])

    def passed_on(self) -> list[str]:
        """Where something is raised whose words come from elsewhere: `module: expression`."""
        return [
            f"{source.module}: {ast.unparse(call)}"
            for source in self.sources.values()
            for call, function in calls(source.tree)
            if self._name(call) in self.taken and call.args and not self.said(source, call, function)
        ]

    def said(self, source: Source, call: ast.Call, function: ast.FunctionDef | None) -> list[str]:
        """The messages of one call; none where it raises nothing, or words from elsewhere."""
        name = self._name(call)
        parts = [self.texts(source, one, function) for one in call.args[: self.taken.get(name, 0)]]
        if (
            name == "print"
            and call.args
            and ast.unparse(call.args[0]).startswith(("f'medvlmreader: ", "'medvlmreader: "))
        ):
            parts = [[text.removeprefix("medvlmreader: ") for text in self.texts(source, call.args[0], function)]]
        return self._worded(parts)

    @staticmethod
    def _worded(parts: list[list[str]]) -> list[str]:
        """Ways to put the parts together; none where nothing of them is known."""
        joined = (plain(" ".join(chosen)) for chosen in itertools.product(*parts))
        return [text for text in dict.fromkeys(joined) if re.search(r"[A-Za-z]{2}", text)]

    def texts(self, source: Source, node: ast.expr, function: ast.FunctionDef | None, depth: int = 0) -> list[str]:
        """Ways in which an expression can read."""
        if depth > 6:
            return [DIFFERS]
        if isinstance(node, ast.Constant):
            return [str(node.value)]
        if isinstance(node, ast.IfExp):
            return [
                *self.texts(source, node.body, function, depth + 1),
                *self.texts(source, node.orelse, function, depth + 1),
            ]
        if isinstance(node, ast.BoolOp):
            return [text for one in node.values for text in self.texts(source, one, function, depth + 1)]
        if isinstance(node, ast.JoinedStr):
            return self._joined(source, list(node.values), function, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._joined(source, [node.left, node.right], function, depth)
        if isinstance(node, ast.Name):
            return self._named(source, node.id, function, depth, node.lineno)
        if isinstance(node, ast.Call):
            return self._called(source, node, function, depth)
        return [DIFFERS]

    def _joined(self, source: Source, parts: list[ast.expr], function: ast.FunctionDef | None, depth: int) -> list[str]:
        ways = [self._part(source, one, function, depth) for one in parts]
        count = 1
        for way in ways:
            count *= len(way)
        if count > MOST:
            ways = [way if len(way) == 1 else [DIFFERS] for way in ways]
        return list(dict.fromkeys("".join(chosen) for chosen in itertools.product(*ways)))

    def _part(self, source: Source, one: ast.expr, function: ast.FunctionDef | None, depth: int) -> list[str]:
        if not isinstance(one, ast.FormattedValue):
            return self.texts(source, one, function, depth + 1)
        value = one.value
        if isinstance(value, ast.IfExp):  # a plural, say: the same message
            return [DIFFERS]
        if isinstance(value, ast.Name) and value.id in source.constants:
            found = self.texts(source, value, function, depth + 1)
            return found if all(len(text) > 1 for text in found) else [DIFFERS]
        return [DIFFERS]

    def _named(
        self, source: Source, name: str, function: ast.FunctionDef | None, depth: int, line: int = 0
    ) -> list[str]:
        if function is not None and (values := assigned(function, name, line)):
            return [text for one in values for text in self.texts(source, one, function, depth + 1)]
        if name in source.constants:
            return self.texts(source, source.constants[name], None, depth + 1)
        if (elsewhere := self.sources.get(source.imported.get(name, ""))) is not None and name in elsewhere.constants:
            return self.texts(elsewhere, elsewhere.constants[name], None, depth + 1)
        return [DIFFERS]

    def _called(self, source: Source, node: ast.Call, function: ast.FunctionDef | None, depth: int) -> list[str]:
        target = node.func
        if isinstance(target, ast.Attribute) and target.attr in ("format", "strip", "rstrip"):
            return [re.sub(r"\{[^}]*\}", DIFFERS, one) for one in self.texts(source, target.value, function, depth + 1)]
        name = target.id if isinstance(target, ast.Name) else ""
        where = source
        if name not in source.functions and source.imported.get(name) in self.sources:
            where = self.sources[source.imported[name]]
        if (found := where.functions.get(name)) is None:
            return [DIFFERS]
        returned = [one.value for one in ast.walk(found) if isinstance(one, ast.Return) and one.value is not None]
        return [text for one in returned for text in self.texts(where, one, found, depth + 1)]

    @staticmethod
    def _name(call: ast.Call) -> str:
        target = call.func
        return target.id if isinstance(target, ast.Name) else getattr(target, "attr", "")


def calls(tree: ast.AST, function: ast.FunctionDef | None = None) -> Iterator[tuple[ast.Call, ast.FunctionDef | None]]:
    """Every call, with the function that it stands in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield node, function
        yield from calls(node, node if isinstance(node, ast.FunctionDef) else function)


def assigned(function: ast.FunctionDef, name: str, line: int) -> list[ast.expr]:
    """What a local name can hold at a line: of each list of statements the last value given before it."""
    found: list[ast.expr] = []
    for node in ast.walk(function):
        for block in (getattr(node, "body", None), getattr(node, "orelse", None)):
            if not isinstance(block, list):
                continue
            given = [
                one.value
                for one in block
                if isinstance(one, ast.Assign) and one.lineno < line
                and any(isinstance(t, ast.Name) and t.id == name for t in one.targets)
            ]  # fmt: skip
            if given and any(one.lineno <= line <= (one.end_lineno or 0) for one in block):
                return given[-1:]
            found += given[-1:]
    return found


def plain(text: str) -> str:
    """One line; what differs, once."""
    text = re.sub(rf"{DIFFERS}(\s*,?\s*{DIFFERS})+", DIFFERS, " ".join(text.split()))
    return text.strip()


def scripts(folder: Path) -> list[Path]:
    """The library's files, in order."""
    return sorted(folder.rglob("*.py"))


def module_of(path: Path, folder: Path = LIBRARY) -> str:
    """Its name with points: `worker.client`; a package by its own name."""
    return ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
