"""What an answer's tokens attended to in the image, for stretches of its text.

Attention is looked up by one pass over the answer once it is written, teacher-forced: writing costs nothing more, fused
kernels stay, and text that somebody edited can be looked up as well. Only the answer's rows and the image's columns of
the matrix are ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.prefix import Lent, rest
from MedVLMReaderLib.sinks import kept_somewhere, watched
from MedVLMReaderLib.study import Message, Model, Prompt, Seen

Row = tuple[int, int]
"""[start, stop) tokens of an answer."""
Head = tuple[int, int]
"""A layer of the decoder and a head in it, both counted from 0."""
Take = Callable[[int, Tensor, Tensor], None]
"""Gets a layer's number, its (heads, rows, visual tokens) attention and the (visual tokens,) that are sinks."""

RECORDED = "medvlmreader_recorded"
CHUNK = 1 << 22
"""Numbers of the attention matrix that are made at a time: bounds memory, changes nothing."""

# ---- Attention ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Attended:
    """What an answer's tokens attended to in the image, head by head."""

    weights: Tensor
    """(layers, heads, rows, visual tokens) float32: shares of all attention, averaged over the tokens of a row."""
    sinks: Tensor
    """(layers, visual tokens) bool: tokens that every word attends to, whatever it says."""

    @property
    def share(self) -> Tensor:
        """(layers, heads, rows) of all attention that lands on the image, sinks included."""
        return self.weights.sum(-1)

    def without_sinks(self) -> Tensor:
        """`weights` with 0 at the sinks."""
        return self.weights.masked_fill(kept_somewhere(self.sinks)[:, None, None], 0)

    def mean(self, heads: Sequence[Head]) -> Tensor:
        """(rows, visual tokens) mean over heads, with 0 at the sinks."""
        layers, numbers = zip(*heads, strict=True)
        return self.without_sinks()[list(layers), list(numbers)].mean(0)


@dataclass(frozen=True, eq=False)
class Gathered:
    """The mean over some heads."""

    weights: Tensor
    """(rows, visual tokens) float32, 0 at the sinks."""
    share: Tensor
    """(rows,) of all attention of these heads that lands on the image, sinks included."""


def attended(
    model: Model, seen: Seen, messages: Sequence[Message], ids: Sequence[int], rows: Sequence[Row],
    lent: Lent | None = None, counts: Tensor | None = None,
) -> Attended:  # fmt: skip
    """What the tokens [start, stop) of an answer attended to when they were chosen, in every head.

    `ids` is the whole answer; `counts`, (tokens,), how much each of its tokens counts, else all alike. What is `lent`
    of the prompt is not read again. Needs layers x heads x rows x visual tokens numbers; `attention` needs one head's.
    """
    weights: dict[int, Tensor] = {}
    sinks: dict[int, Tensor] = {}

    def take(layer: int, found: Tensor, sunk: Tensor) -> None:
        weights[layer], sinks[layer] = found.cpu(), sunk.cpu()

    record(model, seen, messages, ids, rows, take, lent, counts)
    return Attended(*(torch.stack([found[n] for n in sorted(found)]) for found in (weights, sinks)))


def attention(
    model: Model, seen: Seen, messages: Sequence[Message], ids: Sequence[int], rows: Sequence[Row],
    heads: Sequence[Head], lent: Lent | None = None, counts: Tensor | None = None,
) -> Gathered:  # fmt: skip
    """`attended` as the mean over `heads`, gathered while it is looked up."""
    total, share = torch.zeros(len(rows), len(seen.tokens)), torch.zeros(len(rows))

    def take(layer: int, found: Tensor, sunk: Tensor) -> None:
        if numbers := [head for at, head in heads if at == layer]:
            chosen = found[numbers].sum(0)
            share.add_(chosen.sum(-1).cpu())
            total.add_(chosen.masked_fill(kept_somewhere(sunk), 0).cpu())

    record(model, seen, messages, ids, rows, take, lent, counts)
    return Gathered(total / len(heads), share / len(heads))


def heads_of(
    decoder: Any, layers: slice | Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> tuple[Head, ...]:
    """The heads numbered so in the layers numbered so; None: the later half of the layers, all heads of each.

    Raises ReaderError for a layer or a head that the decoder lacks.
    """
    depth, width = int(decoder.config.num_hidden_layers), int(decoder.config.num_attention_heads)
    if isinstance(layers, slice):
        layers = range(depth)[layers]
    layers = range(depth // 2, depth) if layers is None else layers
    heads = range(width) if heads is None else heads
    chosen = tuple((int(layer), int(head)) for layer in layers for head in heads)
    if not chosen or not all(0 <= layer < depth and 0 <= head < width for layer, head in chosen):
        raise ReaderError(
            f"The decoder has layers 0 to {depth - 1} with heads 0 to {width - 1}; "
            f"{list(layers)} and {list(heads)} were asked for. Choose some of these."
        )
    return chosen


def relative(found: Tensor, generic: Tensor) -> Tensor:
    """(rows, visual tokens) attention as a multiple of what a generic prompt, (1, visual tokens), pays to each token.

    arXiv 2502.17422. A tenth of the generic mean is added to it, so that a token which nobody looks at is no peak.
    """
    return found / (generic + generic.mean() / 10).clamp(min=1e-12)


@torch.no_grad()
def record(
    model: Model, seen: Seen, messages: Sequence[Message], ids: Sequence[int], rows: Sequence[Row], take: Take,
    lent: Lent | None = None, counts: Tensor | None = None,
) -> None:  # fmt: skip
    """One pass of the decoder over prompt and answer; `take` gets each layer's attention as it is computed.

    A token's row is the one that chose it: that of the token before it. Rows add up to the share on the image.
    """
    prompt = model.prompt(seen, messages)
    told = model.decoder.get_input_embeddings()(torch.tensor(ids[:-1], dtype=torch.long, device=prompt.inputs.device))
    averages = _averages(rows, len(ids), counts).to(prompt.inputs.device)
    visual = torch.tensor(prompt.visual_positions, device=prompt.inputs.device)
    known = lent.count if lent else 0
    inputs = rest(continued(prompt, told), known)
    with watched(model.decoder, () if lent else prompt.visual_positions) as sinks:
        first = prompt.inputs.shape[1] - 1 - known
        recorder = _Recorder(averages, first, visual, lent.sinks if lent else sinks, take)
        with _recording(model.decoder, recorder):
            model.decoder(
                past_key_values=lent.cache if lent else None, use_cache=lent is not None, logits_to_keep=1, **inputs
            )


def _averages(rows: Sequence[Row], count: int, counts: Tensor | None) -> Tensor:
    """(rows, tokens) how much each token counts in each row, 1 together; all alike where none would count."""
    averages = torch.zeros(len(rows), max(count, 1))
    for row, (start, stop) in zip(averages, rows, strict=True):
        some = counts is not None and bool(counts[start:stop].sum() > 0)
        row[start:stop] = counts[start:stop].float().cpu() if some and counts is not None else 1.0
        row /= row.sum().clamp(min=1e-30)
    return averages


def continued(prompt: Prompt, told: Tensor) -> Prompt:
    """A prompt with embeddings (tokens, width) of an answer after it."""
    inputs = torch.cat([prompt.inputs, told[None].to(prompt.inputs)], 1)
    return Prompt(inputs, prompt.visual_positions, prompt.with_answer(len(told)))


class _Recorder:
    """Rows of the attention of each layer, from the queries and keys that its fused kernel was given."""

    def __init__(self, averages: Tensor, first: int, visual: Tensor, sinks: Mapping[int, Tensor], take: Take) -> None:
        self.averages, self.first, self.visual, self.sinks, self.take = averages, first, visual, sinks, take

    def keep(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Hand on what the answer's queries (1, heads, length, width) pay to the image's keys."""
        heads, (key_heads, length) = query.shape[1], key.shape[1:3]
        keys = key[0].float().transpose(-2, -1)[:, None]
        rows, count = self.averages.shape
        found = torch.zeros(heads, rows, len(self.visual), device=query.device)
        step = max(1, CHUNK // (heads * length))
        for start in range(0, count, step):
            at = torch.arange(start, min(start + step, count), device=query.device)
            asked = query[0][:, self.first + at].float().unflatten(0, (key_heads, -1))
            scores = (asked @ keys * scaling).flatten(0, 1)  # (heads, tokens, length): heads are grouped by key head
            paid = _masked(scores, mask, self.first + at, query.shape[2]).softmax(-1)[..., self.visual]
            found += self.averages[:, at] @ paid
        none = torch.zeros(len(self.visual), dtype=torch.bool, device=query.device)
        self.take(layer, found, self.sinks.get(layer, none))


def _masked(scores: Tensor, mask: Tensor | None, at: Tensor, count: int) -> Tensor:
    """(heads, tokens, length) scores with what the queries `at`, of the `count` last positions, may not see put out."""
    if mask is None:
        later = torch.arange(scores.shape[-1], device=at.device) > at[:, None] + scores.shape[-1] - count
        return scores.masked_fill(later, float("-inf"))
    seen = mask[0][:, at, : scores.shape[-1]]
    return scores.masked_fill(~seen, float("-inf")) if seen.dtype == torch.bool else scores + seen.float()


_current: ContextVar[_Recorder] = ContextVar("recorder")


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, Any]:
    """transformers' fused attention, its queries and keys shown to the recorder first."""
    scaling = more.get("scaling") or query.shape[-1] ** -0.5
    _current.get().keep(module.layer_idx, query, key, attention_mask, scaling)
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **more)


AttentionInterface.register(RECORDED, _attend)
AttentionMaskInterface.register(RECORDED, sdpa_mask)  # under a name that it does not know, transformers builds no mask


@contextmanager
def _recording(decoder: Any, recorder: _Recorder) -> Iterator[None]:
    """In here the decoder shows its attention to the recorder; afterwards it computes as before."""
    before = decoder.config._attn_implementation
    token = _current.set(recorder)
    with ExitStack() as stack:
        stack.callback(_current.reset, token)
        stack.callback(decoder.set_attn_implementation, before)
        decoder.set_attn_implementation(RECORDED)
        yield
