"""The reader: sees a study once, answers many questions about it, streams words, and says where it looked."""

from __future__ import annotations

import importlib
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.logits_process import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.attention import heads_of
from MedVLMReaderLib.calibration import Calibration
from MedVLMReaderLib.calibration import found as found_calibration
from MedVLMReaderLib.choice import chosen_device, loaded
from MedVLMReaderLib.copies import save_quantised
from MedVLMReaderLib.hub import Found, Progress, find
from MedVLMReaderLib.looking import (
    attention_trace,
    check_method,
    check_same,
    relevance_trace,
    stretches,
    with_trace,
)
from MedVLMReaderLib.memory import Precision
from MedVLMReaderLib.models import PAIRS
from MedVLMReaderLib.options import USUAL
from MedVLMReaderLib.options import Options as Options
from MedVLMReaderLib.prefix import READ_AGAIN, Lent, Prefix, out_of_memory, rest
from MedVLMReaderLib.reading import Reading, Span, Trace, sentence_spans
from MedVLMReaderLib.relevance import relevance
from MedVLMReaderLib.sinks import watched
from MedVLMReaderLib.stopping import stoppable
from MedVLMReaderLib.study import Message, Model, Prompt, Seen, Stopped
from MedVLMReaderLib.verdict import Verdict
from MedVLMReaderLib.verification import verified
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.weights import Checkpoint, fingerprint, system_of


def load(
    name: str | Path = "built-in",
    *,
    precision: Precision | Literal["auto"] = "auto",
    device: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress = lambda *_: None,
) -> Reader:
    """A reader with a model of the table, of the hub (OWNER/NAME, fetched where it is not here), or in a folder.

    `precision` is the decoder's; `auto` takes the best that fits the memory left. `device` is cuda, mps or cpu; None
    takes the first of these that is there. Raises ReaderError where the name is unknown, the model cannot be had, its
    files are not what they should be, or this machine cannot run it so.
    """
    _, build, checkpoint = prepared(name, device, revision, offline, progress)
    return Reader(*loaded(build, checkpoint, precision))


def prepared(
    name: str | Path, device: str | None, revision: str | None, offline: bool, progress: Progress
) -> tuple[Found, Callable[[Checkpoint], Model], Checkpoint]:
    """A model's files, the function that loads them, and with what; nothing is loaded yet."""
    found = find(name, revision=revision, offline_only=offline, progress=progress)
    system = found.card.system if found.card else system_of(found.folder)
    if system in PAIRS:
        raise ReaderError(
            f"'{found.name}' finds scans and scores findings; it writes nothing. Use it with "
            "'medvlmreader search' or 'medvlmreader classify'."
        )
    if device is None and found.card and found.card.shipped:
        device = "cpu"  # too small to gain anything elsewhere, and the same numbers on every machine
    checkpoint = Checkpoint(
        found.folder, found.name, found.revision or fingerprint(found.folder), device=chosen_device(device),
        notes=found.notes,
    )  # fmt: skip
    return found, importlib.import_module(f"MedVLMReaderLib.models.{system}").load, checkpoint


Constraint = Callable[[Tensor, Tensor], Tensor]
"""(1, n) tokens written so far and (1, vocabulary) scores -> scores, -inf for what may not come: as LogitsProcessor."""


def nothing() -> None:
    """For who does not want to know."""


def never() -> bool:
    """Whether to stop: no."""
    return False


class Reader:
    """A loaded model, ready for studies and questions, one at a time."""

    def __init__(self, model: Model, checkpoint: Checkpoint | None = None) -> None:
        self.model, self.checkpoint, self.prefix = model, checkpoint, Prefix()

    @property
    def context(self) -> int:
        """Tokens that the decoder reads at a time, image and answer among them."""
        return int(getattr(self.model.decoder.config, "max_position_embeddings", 1 << 30))

    def report_request(self) -> str:
        """The question that asks this model for a report."""
        return self.model.report_request()

    def forget(self) -> None:
        """Drop what the decoder has read: the next answer depends on nothing that was asked before."""
        self.prefix = Prefix()

    def see(
        self, volumes: Volume | Sequence[Volume], view: View | None = None, stopped: Callable[[], bool] = never
    ) -> Seen:
        """Encode a study: one volume, or several series of one examination.

        `stopped` is looked at before every part of the network; once it says True, `Stopped` is raised.
        """
        with stoppable(self.model, stopped):
            seen = self.model.see([volumes] if isinstance(volumes, Volume) else list(volumes), view)
        notes = self.checkpoint.notes if self.checkpoint else ()
        return replace(seen, notes=(*notes, *seen.notes)) if notes else seen

    def save_quantised(self, folder: str | Path) -> None:
        """Write a copy with the decoder in the 8 or 4 bits it was loaded in; it loads without being quantised again.

        ReaderError where the decoder is not quantised, or the folder cannot be written.
        """
        if self.checkpoint is None:
            raise ReaderError("This model does not come from files. Load it by name or from a folder.")
        save_quantised(self.model.decoder, self.checkpoint, Path(folder))

    def report(self, seen: Seen, options: Options = USUAL) -> Reading:
        """The model's draft report."""
        *_, reading = self.ask(seen, self.report_request(), options=options)
        assert isinstance(reading, Reading)
        return reading

    def ask(
        self,
        seen: Seen,
        question: str,
        *,
        history: Sequence[Message] = (),
        options: Options = USUAL,
        stopped: Callable[[], bool] = never,
        constrain: Constraint | None = None,
        looking: Callable[[], None] = nothing,
    ) -> Iterator[str | Reading]:
        """The words of the answer as they come, and last the `Reading`.

        `stopped` is looked at before every word, and before every part of the network while the prompt is read; once
        it says True the reading ends, marked incomplete. Of what the last answer's prompt and this one begin with
        alike, nothing is read again. `constrain` says before each word which tokens may come. `looking` is called after
        the last word, before it is worked out where the model looked.
        """
        if not question.strip():
            raise ReaderError("The question is empty. Type one, for example: Is there a nodule in the right lung?")
        messages = [*history, Message("user", question.strip())]
        began = time.monotonic()
        answer = Answer(self.model.tokenizer)
        ends = {self.model.tokenizer.eos_token_id, *getattr(self.model, "ends", ())}  # some have several
        said: list[str] = []
        with closing(self._tokens(seen, messages, options, stopped, said, constrain)) as tokens:
            for token in tokens:
                if stopped() or len(answer.ids) >= options.longest:
                    break
                if token in ends:
                    answer.complete = True
                    break
                if new := answer.take(token):
                    yield new
        if rest := answer.finish():
            yield rest
        timings = {"answer": time.monotonic() - began}
        traces: tuple[Trace, ...] = ()
        if options.heatmaps and not stopped():
            looking()
            traces = self._traces(seen, messages, answer, stopped)
        timings["heatmaps"] = time.monotonic() - began - timings["answer"]
        yield Reading(
            question.strip(), answer.text, answer.complete, traces, seen.token_map.grids, self.model.name,
            self.model.revision, {**asdict(options), **self._computed()}, seen.preparation,
            (*seen.notes, *said), timings, seen.boxes,
        )  # fmt: skip

    def look(
        self,
        seen: Seen,
        reading: Reading,
        *,
        method: str = "",
        layers: slice | Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        relative: bool = False,
        text: str | None = None,
        history: Sequence[Message] = (),
    ) -> Reading:
        """The reading with where the model looked by one method more, at no more cost than reading the answer again.

        `method`: attention or relevance, "" the reading's first. `text`: what somebody has made of the answer. Of
        attention, `layers` and `heads` of the decoder, counted from 0; None: those that were found to localise (see
        `calibration`), else the later half. `relative`: as a multiple of what a generic prompt attends to. `history`:
        the turns before the question. Raises ReaderError where the reading is of another model or scan, or the text
        has no words.
        """
        check_same(self.model, seen, reading)
        method = method or (reading.traces[0].method if reading.traces else "relevance")
        check_method(method)
        said = reading.text if text is None else text
        messages = [*history, Message("user", reading.question)]
        answer, spans = self.forced(seen, messages, said), stretches(said, seen.token_map, method)
        rows = answer.rows_of(spans, said)
        if method == "relevance":
            return with_trace(reading, said, relevance_trace(self.model, seen, messages, answer.ids, spans, rows))
        known = self.calibration if layers is None and heads is None else None
        chosen = known.heads if known else heads_of(self.model.decoder, layers, heads)
        how = known.choice if known else ("the later half" if layers is None and heads is None else "as asked for")
        trace = attention_trace(
            self.model, seen, messages, answer.ids, spans, rows, chosen, how, self.prefix, to_generic=relative,
            weighed=known is not None and known.weighed,
        )  # fmt: skip
        return with_trace(reading, said, trace)

    def verify(
        self,
        volumes: Volume | Sequence[Volume],
        seen: Seen,
        reading: Reading,
        words: str | Span | int | None,
        *,
        method: str | None = None,
        view: View | None = None,
        history: Sequence[Message] = (),
        regions: int = 16,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> Verdict:
        """Whether the image supports `words` (see `Reading.span`): their likelihood without the highlighted region.

        Encodes the study 1 + `regions` times. Raises ReaderError as `look` and `Reading.heatmap` do.
        """
        check_same(self.model, seen, reading)
        messages, span = [*history, Message("user", reading.question)], reading.span(words)
        answer = self.forced(seen, messages, reading.text)
        return verified(
            self.model, [volumes] if isinstance(volumes, Volume) else list(volumes), seen, messages, answer.ids,
            answer.rows_of([span], reading.text)[0], reading.heatmap(span, method), view=view, regions=regions,
            seed=seed, progress=progress,
        )  # fmt: skip

    @property
    def calibration(self) -> Calibration | None:
        """Which heads localise, as found beside the model's files; None where that was never looked for."""
        return found_calibration(self.checkpoint.folder, self.model.revision) if self.checkpoint else None

    def forced(self, seen: Seen, messages: Sequence[Message], text: str) -> Answer:
        """A text as the tokens of an answer; ReaderError where it is empty or too long for the model."""
        answer = Answer(self.model.tokenizer)
        for token in self.model.tokenizer.encode(text, add_special_tokens=False):
            answer.take(token)
        answer.finish()
        if not answer.text.strip():
            raise ReaderError("The text has no words to look for. Type some.")
        room = getattr(self.model.decoder.config, "max_position_embeddings", 1 << 30)
        if (length := self.model.prompt(seen, messages).inputs.shape[1] + len(answer.ids)) > room:
            raise ReaderError(f"Question and text make {length} tokens; this model reads {room}. Shorten the text.")
        return answer

    def _computed(self) -> dict[str, Any]:
        """How the decoder's weights are kept and where it computes: part of what an answer depends on."""
        return {"precision": self.checkpoint.precision, "device": self.checkpoint.device} if self.checkpoint else {}

    def left(self, seen: Seen, messages: Sequence[Message]) -> int:
        """Tokens that the context has left for an answer after this chat; below 0 where the chat alone is too long."""
        with torch.no_grad():
            return self.context - self.model.prompt(seen, messages).inputs.shape[1]

    @torch.no_grad()
    def _tokens(
        self,
        seen: Seen,
        messages: Sequence[Message],
        options: Options,
        stopped: Callable[[], bool] = never,
        said: list[str] | None = None,
        constrain: Constraint | None = None,
    ) -> Generator[int, None, None]:
        """Token after token, up to the end of the context or until the prompt's reading is stopped.

        The decoder's memory of prompt and answer is kept between them, and for the next question. What the user should
        know of that is added to `said`.
        """
        prompt, choose = self.model.prompt(seen, messages), chooser(options)
        length = prompt.inputs.shape[1]
        if length + 1 > self.context:
            raise ReaderError(
                f"The question makes {length} tokens; this model reads {self.context}. Ask a shorter one."
            )
        lent = self.prefix.taken(seen.key, prompt)
        written: list[int] = []
        known = lent.count
        try:
            with stoppable(self.model.decoder, stopped):
                try:
                    scores = self._begun(lent, prompt)
                except (RuntimeError, MemoryError) as error:
                    if not known or not out_of_memory(error):
                        raise
                    self.prefix.refused = seen.key
                    lent, known = Lent(DynamicCache(), 0, {}), 0  # gives back what was kept; all is read again
                    scores = self._begun(lent, prompt)
            if said is not None and self.prefix.missed(seen.key):
                said.append(READ_AGAIN)
            known = length
            for count in range(self.context - length):
                token = choose(constrain(torch.tensor([written]), scores) if constrain else scores)
                yield token
                following = torch.tensor([[token]], device=scores.device)
                scores = self._scores(lent.cache, {"input_ids": following, **prompt.after(count)})
                written.append(token)
        except Stopped:
            return
        finally:
            self._keep(seen, prompt, lent, known, written)

    def _begun(self, lent: Lent, prompt: Prompt) -> Tensor:
        """(1, vocabulary) scores of an answer's first token; the prompt and its sinks are added to what is lent."""
        with watched(self.model.decoder, () if lent.count else prompt.visual_positions) as sinks:
            scores = self._scores(lent.cache, rest(prompt, lent.count))
        lent.sinks.update(sinks)
        return scores

    def _scores(self, cache: DynamicCache, inputs: dict[str, Any]) -> Tensor:
        """(1, vocabulary) scores of what follows `inputs`, which are added to the cache."""
        out = self.model.decoder(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        scores: Tensor = out.logits[:, -1]
        return scores

    def _keep(self, seen: Seen, prompt: Prompt, lent: Lent, known: int, written: list[int]) -> None:
        """For the next question: the first `known` positions of the prompt and, once that is all, the answer."""
        inputs = prompt.inputs[:, :known]
        if written:
            ids = torch.tensor([written], device=inputs.device)
            inputs = torch.cat([inputs, self.model.decoder.get_input_embeddings()(ids).to(inputs)], 1)
        self.prefix.keep(seen.key, inputs, prompt, lent.cache, lent.sinks, self.model.decoder.config)

    def _traces(
        self, seen: Seen, messages: Sequence[Message], answer: Answer, stopped: Callable[[], bool] = never
    ) -> tuple[Trace, ...]:
        spans = sentence_spans(answer.text)
        rows = [answer.tokens_of(span) for span in spans]
        if not rows:
            return ()
        try:
            with stoppable(self.model.decoder, stopped):
                found = relevance(self.model, seen, messages, answer.ids, rows, stopped)
        except Stopped:
            return ()
        return (Trace("relevance", tuple(spans), found),)


def chooser(options: Options) -> Callable[[Tensor], int]:
    """How the next token is chosen from (1, vocabulary) scores."""
    if not options.sample:
        return lambda scores: int(scores.argmax())
    if not (options.temperature > 0 and 0 < options.top_p <= 1):
        raise ReaderError(
            f"Words cannot be drawn with temperature {options.temperature} and top_p {options.top_p}. "
            "Choose a temperature above 0 and a top_p above 0, up to 1."
        )
    warp = LogitsProcessorList([TemperatureLogitsWarper(options.temperature), TopPLogitsWarper(options.top_p)])
    generator = torch.Generator().manual_seed(options.seed)
    nothing: Any = torch.empty(1, 0, dtype=torch.long)

    def draw(scores: Tensor) -> int:
        return int(torch.multinomial(warp(nothing, scores.float().cpu()).softmax(-1)[0], 1, generator=generator))

    return draw


class Answer:
    """Tokens as they come, and the text they make."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.begins: list[int] = []
        """How much of the text there was before each token; the same for all pieces of a letter."""
        self.text = ""
        self.complete = False

    def take(self, token: int) -> str:
        """Add a token; the new letters, none while a letter is still in pieces."""
        self.ids.append(token)
        self.begins.append(len(self.text))
        text = self._decoded()
        new = "" if text.endswith("\N{REPLACEMENT CHARACTER}") else text[len(self.text) :]
        self.text += new
        return new

    def finish(self) -> str:
        """What was held back of a letter in pieces."""
        rest = self._decoded()[len(self.text) :]
        self.text += rest
        return rest

    def _decoded(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def rows_of(self, spans: Sequence[Span], text: str) -> list[tuple[int, int]]:
        """[start, stop) tokens for each of the spans of `text`, which these tokens write but for a space before it."""
        before = len(text) - len(text.lstrip()) - (len(self.text) - len(self.text.lstrip()))
        if text.strip() != self.text.strip():
            raise ReaderError("The model's words cannot spell this text letter by letter. Leave out unusual letters.")
        return [self.tokens_of((max(start - before, 0), stop - before)) for start, stop in spans]

    def tokens_of(self, span: tuple[int, int]) -> tuple[int, int]:
        """[start, stop) tokens that write the characters of a span."""
        first = self.begins[bisect_right(self.begins, span[0]) - 1]
        return bisect_left(self.begins, first), bisect_left(self.begins, span[1])
