"""True reports of made studies, as if the model had written them: so that models which write otherwise, or wrongly, can
be asked where they look, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from MedVLMReaderLib.evaluation import findings as scoring
from MedVLMReaderLib.geometry import Array
from MedVLMReaderLib.phantom import Study, made_study
from MedVLMReaderLib.phantom_report import REPORT_REQUEST, report
from MedVLMReaderLib.reading import Reading, Span
from MedVLMReaderLib.study import Message, Seen
from MedVLMReaderLib.truth import Finding

if TYPE_CHECKING:
    from MedVLMReaderLib.reader import Reader

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Case:
    """A study with a finding and the sentence of the true report that says it."""

    study: Study
    seen: Seen
    reading: Reading
    """The true report, as if the model had written it."""
    spans: tuple[Span, ...]
    masks: tuple[Array, ...]
    """Of what each span says, on the study's voxels."""
    findings: tuple[Finding, ...]

    def told(self, reader: Reader) -> tuple[list[Message], list[int], list[tuple[int, int]]]:
        """The chat before the report, the report's tokens, and the [start, stop) of each span among them."""
        messages = [Message("user", self.reading.question)]
        answer = reader.forced(self.seen, messages, self.reading.text)
        return messages, answer.ids, answer.rows_of(self.spans, self.reading.text)


def cases(reader: Reader, seeds: Sequence[int], progress: Progress | None = None) -> Iterator[Case]:
    """One for each of the studies that have a finding."""
    for n, seed in enumerate(seeds):
        if case := case_of(reader, int(seed)):
            yield case
        if progress:
            progress(n + 1, len(seeds))


def case_of(reader: Reader, seed: int) -> Case | None:
    """The case of one study; None where it has no finding."""
    study = made_study(seed)
    if not study.truth.findings:
        return None
    seen, text = reader.see(study.volume), report(study.truth)
    pairs = scoring.matched(scoring.parsed(text), study.truth.findings).pairs
    numbers = {finding: n for n, finding in enumerate(study.truth.findings)}
    reading = Reading(
        REPORT_REQUEST, text, True, (), seen.token_map.grids, reader.model.name, reader.model.revision,
        boxes=seen.boxes,
    )  # fmt: skip
    masks = tuple(study.masks[numbers[finding]] for _, finding in pairs)
    return Case(study, seen, reading, tuple(one.span for one, _ in pairs), masks, tuple(f for _, f in pairs))


def measured_with(reader: Reader, what: str, **more: Any) -> dict[str, Any]:
    """What `Rows` are about: another model, other weights or another precision give other rows."""
    precision = reader.checkpoint.precision if reader.checkpoint else ""
    return {"what": what, "model": reader.model.name, "revision": reader.model.revision, "precision": precision, **more}
