"""`Rows`: what was found of each made study, kept as it comes, so that a long evaluation goes on after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from MedVLMReaderLib import ReaderError


class Rows:
    """Plain data by seed; in a file, one JSON object a line, where there is a path.

    The first line says what was measured with which weights: rows of another measurement are never mixed in.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        """What the file holds. ReaderError where that is something else, or cannot be read."""
        self.path, self.about = path, about
        self.kept: dict[int, Any] = {}
        if path and path.exists():
            self._read(path)

    def of(self, seed: int, found: Callable[[], Any]) -> Any:
        """What is known of a study; `found` is asked where nothing is, and its answer kept before it is given back.

        ReaderError where the disk refuses.
        """
        if seed not in self.kept:
            row = found()
            if self.path:
                self._append(self.path, {"seed": seed, "row": row})
            self.kept[seed] = row
        return self.kept[seed]

    def _read(self, path: Path) -> None:
        whole = [line for line in self._lines(path) if line.endswith("\n")]  # the last one may be cut off
        try:
            first, *rest = (json.loads(line) for line in whole) if whole else ({"about": self.about},)
            about = first["about"]
            self.kept = {int(one["seed"]): one["row"] for one in rest}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ReaderError(f"'{path}' holds something else than rows of an evaluation. Name another file.") from None
        if about != self.about:
            said = ", ".join(f"{name} {about.get(name)}" for name in self.about if about.get(name) != self.about[name])
            raise ReaderError(f"'{path}' holds rows of another measurement ({said}). Name another file.")
        path.write_text("".join(whole), encoding="utf-8")

    @staticmethod
    def _lines(path: Path) -> list[str]:
        try:
            return path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError) as error:
            raise ReaderError(f"'{path}' cannot be read ({error}). Name another file.") from error

    def _append(self, path: Path, row: dict[str, Any]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = not path.exists() or not path.stat().st_size
            with path.open("a", encoding="utf-8") as file:
                if new:
                    file.write(json.dumps({"about": self.about}) + "\n")
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise ReaderError(f"'{path}' cannot be written ({error.strerror}). Name another place.") from error
