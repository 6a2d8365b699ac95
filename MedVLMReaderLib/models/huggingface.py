"""Vision-language models that transformers ships: MedGemma and Gemma 3, Qwen-VL, SmolVLM, Idefics3, LLaVA-OneVision.

They read pictures, so a scan becomes pictures (`pages`): an instruction, evenly chosen slices each followed by its
number, the three planes on the screen, and last the question. Which cell of which slice a token stands for comes from
the size that the family's own picture processor gave the picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Grid, TokenMap
from MedVLMReaderLib.models.families import FAMILIES, Decoder, Family, Placed, cell_grid, picture_inputs
from MedVLMReaderLib.models.published import (
    chat_template,
    checked_config,
    ends_of,
    picture_processor,
    read_json,
    tokenizer_of,
)
from MedVLMReaderLib.pages import Page, PageRecipe, notes, pages
from MedVLMReaderLib.quantise import KINDS
from MedVLMReaderLib.shards import translated
from MedVLMReaderLib.study import Message, Prompt, Seen
from MedVLMReaderLib.volume import View, Volume
from MedVLMReaderLib.weights import Checkpoint, Shards, built, encoder_dtype, place_quantised, placed

RESERVED = 2048
"""Tokens kept for the question and the answer; a quarter of the context where that is less."""
LABEL = 24
"""Tokens that a label and what stands around a picture take at most."""
REPORT = "Write a radiology report of this scan, with the sections Findings and Impression."
GENERAL = (
    "The model was not made for this reader and nobody has tried how well it reads scans here. "
    "Do not rely on what it says."
)


def instruction(volumes: Sequence[Volume], found: Sequence[Page], recipe: PageRecipe) -> str:
    """What the model is told before the pictures."""
    kinds = dict.fromkeys(volume.modality for volume in volumes)
    scan = " and ".join({"CT": "CT", "MR": "MR", "": "CT or MR"}[kind] for kind in kinds)
    slices = sum("SLICE" in page.label for page in found)
    order = " from head to feet" if recipe.plane == "axial" else ""
    screen = "" if slices == len(found) else " The last three pictures show the planes that the radiologist looks at."
    return (
        f"You are helping a radiologist to read a {scan} scan. Below are {slices} {recipe.plane} slices of it{order}, "
        f"each followed by its number.{screen} Look at all of them, then answer what is asked at the end."
    )


@dataclass(frozen=True, eq=False)
class SeenPages(Seen):
    """A study after the encoder. `tokens` may be wider than the decoder: what deeper layers are fed follows."""

    pages: tuple[Page, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    """(rows, columns) in cells of each page."""
    instruction: str = ""


class PictureReader(nn.Module):
    """The reader's model: shows pages to a network of transformers' own, and prompts its decoder."""

    def __init__(
        self,
        network: Any,
        family: Family,
        processor: Any,
        tokenizer: Any,
        template: str,
        recipe: PageRecipe,
        *,
        name: str = "",
        revision: str = "",
        ends: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.network, self.family, self.parts = network, family, family.parts(network)
        self.processor, self.tokenizer, self.template, self.recipe = processor, tokenizer, template, recipe
        self.name, self.revision, self.ends = name, revision, ends
        self.decoder = Decoder(network, self.family)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.decoder.get_input_embeddings().weight.device

    def prepared(self, volumes: Sequence[Volume], view: View | None = None) -> tuple[Volume, ...]:
        """Every page as a volume of one slice, grey levels 0 to 1: the mean of red, green and blue."""
        found, _ = self._fitting(volumes, view)
        return tuple(
            Volume(np.asarray(page.pixels.mean(-1, dtype=np.float32)[None] / 255), page.grid, notes=(page.label,))
            for page in found
        )

    @torch.no_grad()
    def see(self, volumes: Sequence[Volume], view: View | None = None) -> SeenPages:
        """Encode every page; the planes on the screen follow the slices where there is a view."""
        found, recipe = self._fitting(volumes, view)
        seen = [self._page(page) for page in found]
        features = tuple(part for part, _ in seen)
        grids = tuple(cell_grid(page.grid, *size) for page, (_, size) in zip(found, seen, strict=True))
        sizes = tuple((grid.shape[1], grid.shape[2]) for grid in grids)
        shown = (self.revision, recipe.key, [v.key for v in volumes], view)
        out = SeenPages(
            features, torch.empty(0), TokenMap(grids), recipe.to_json(),
            hashlib.sha256(repr(shown).encode()).hexdigest()[:16],
            self._notes(volumes, recipe), tuple(volume.grid for volume in volumes),
            found, sizes, instruction(volumes, found, recipe),
        )  # fmt: skip
        return replace(out, tokens=self.tokens(features, out))

    def _page(self, page: Page) -> tuple[Tensor, tuple[int, int, int]]:
        """(cells, width) features of a page, and its (rows, columns) in pixels with the side of a cell."""
        inputs = {name: part.to(self.device) for name, part in self._inputs(page).items()}
        size = self.parts.size(inputs)
        features = self.parts.features(inputs)
        wanted = (size[0] // size[2]) * (size[1] // size[2])
        if len(features) != wanted:
            raise ReaderError(
                f"A picture of {size[0]} x {size[1]} pixels makes {wanted} tokens by its size, and {len(features)} in "
                f"{self.name}. preprocessor_config.json and config.json do not belong together; get the model again."
            )
        return features, size

    def _inputs(self, page: Page) -> dict[str, Tensor]:
        inputs = picture_inputs(self.processor, page.pixels, self.family)
        dtype = next(self.network.model.get_submodule(self.family.encoder[0]).parameters()).dtype
        return {name: part.to(dtype) if part.is_floating_point() else part for name, part in inputs.items()}

    def _fitting(self, volumes: Sequence[Volume], view: View | None) -> tuple[tuple[Page, ...], PageRecipe]:
        """The pages, of fewer slices where the decoder's context would not hold them; and the recipe that made them."""
        found = pages(volumes, self.recipe, view)
        each = LABEL + max(self._cost(page) for page in _of_each_shape(found))
        context = int(getattr(self.decoder.config, "max_position_embeddings", 1 << 30))
        room = (context - min(RESERVED, context // 4)) // each
        if len(found) <= room:
            return found, self.recipe
        screen = sum("SLICE" not in page.label for page in found)
        if room - screen < len(volumes):
            raise ReaderError(
                f"{self.name} reads {context} tokens at a time, and a picture makes {each} of them: it cannot be shown "
                f"{len(volumes) + screen} pictures and a question. Choose a model with a longer context."
            )
        recipe = replace(self.recipe, most=room - screen)
        return pages(volumes, recipe, view), recipe

    def _cost(self, page: Page) -> int:
        rows, columns, cell = self.parts.size(self._inputs(page))
        return (rows // cell) * (columns // cell)

    def _notes(self, volumes: Sequence[Volume], recipe: PageRecipe) -> tuple[str, ...]:
        said = [GENERAL, *(note for volume in volumes for note in volume.notes)]
        if recipe.most < self.recipe.most:
            said.append(
                f"The model's context holds {recipe.most} slices beside the question; {self.recipe.most} were wanted."
            )
        return tuple(dict.fromkeys([*said, *notes(volumes, recipe)]))

    def tokens(self, features: Sequence[Tensor], seen: Seen) -> Tensor:  # noqa: ARG002
        """(visual tokens, decoder width) from features like those of `seen`; what deeper layers are fed follows."""
        return torch.cat([self.parts.project(part) for part in features])

    def cells(self, seen: Seen) -> tuple[Tensor, ...]:
        """For each grid, the flat cell of every row of `seen.features`."""
        return tuple(torch.arange(len(part)) for part in seen.features)

    def prompt(self, seen: Seen, messages: Sequence[Message]) -> Prompt:
        """The chat as the model's own template writes it; the pages stand in the first question, before its words."""
        assert isinstance(seen, SeenPages)
        ids = self._ids(self.written(seen, messages))
        places = (ids == self.network.config.image_token_id).nonzero()[:, 0]
        cells = [[True] * (rows * columns) + [False] * self.family.closing for rows, columns in seen.sizes]
        is_cell = torch.tensor([flag for page in cells for flag in page], device=ids.device)
        if len(places) != len(is_cell):
            raise ReaderError(
                f"{self.name} wrote {len(places)} places for pictures into the chat, and the pictures make "
                f"{len(is_cell)} tokens. Its tokenizer and its other files do not belong together; get the model again."
            )
        return self._spliced(seen, ids, places[is_cell], places[~is_cell])

    def _spliced(self, seen: SeenPages, ids: Tensor, visual: Tensor, closing: Tensor) -> Prompt:
        """Embeddings of the words with the visual tokens in their places."""
        words = self.decoder.get_input_embeddings()(ids.where(ids != self.network.config.image_token_id, 0))
        width = words.shape[1]
        inputs = words.index_copy(0, visual, seen.tokens[:, :width].to(words))
        if len(closing):
            newline = self.network.model.image_newline.to(words).expand(len(closing), -1)
            inputs = inputs.index_copy(0, closing, newline)
        deeper = None
        if seen.tokens.shape[1] > width:
            deeper = seen.tokens[:, width:].to(words).unflatten(1, (-1, width)).transpose(0, 1)
        extras = self.parts.extras(Placed(ids[None], seen.sizes, deeper))
        return Prompt(inputs[None], tuple(visual.tolist()), extras)

    def written(self, seen: SeenPages, messages: Sequence[Message]) -> str:
        """The chat as text, with every token of a picture written out. ReaderError where a message holds one."""
        for message in messages:
            for token in (self.family.mark, self.family.token, *self.family.specials):
                if token in message.text:
                    raise ReaderError(f"The text holds '{token}', which this model takes for a picture. Leave it out.")
        chat = [{"role": message.role, "content": [_text(message.text)]} for message in messages]
        first = next(n for n, message in enumerate(messages) if message.role == "user")
        chat[first]["content"] = self._shown(seen, messages[first].text)
        parts = self._templated(chat).split(self.family.mark)
        if len(parts) != len(seen.pages) + 1:
            raise ReaderError(
                f"The chat template of {self.name} wrote {len(parts) - 1} pictures of {len(seen.pages)}. "
                "Get the model again, with its own template."
            )
        pictures = [self.family.written(rows * columns) for rows, columns in seen.sizes]
        return parts[0] + "".join(a + b for a, b in zip(pictures, parts[1:], strict=True))

    def _shown(self, seen: SeenPages, question: str) -> list[dict[str, str]]:
        """The first question: instruction, pictures each followed by its label, and last what is asked."""
        if not self.family.ordered:
            pictures = "".join(f"{self.family.mark}\n{page.label}\n" for page in seen.pages)
            return [_text(f"{seen.instruction}\n\n{pictures}\n{question}")]
        pictures_ = [part for page in seen.pages for part in ({"type": "image"}, _text(page.label))]
        return [_text(f"{seen.instruction}\n\n"), *pictures_, _text(f"\n\n{question}")]

    def _templated(self, chat: Sequence[Mapping[str, Any]]) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat, chat_template=self.template, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # the template is a program of its own, and raises what it likes
            raise ReaderError(f"The chat template of {self.name} does not take this chat ({error}).") from error

    def _ids(self, text: str) -> Tensor:
        """(length,) tokens; the beginning that a template has written is not put there twice."""
        begun = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        ids = self.tokenizer(text, add_special_tokens=not begun)["input_ids"]
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def report_request(self) -> str:
        """The question that asks for a report."""
        return REPORT


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _of_each_shape(found: Sequence[Page]) -> list[Page]:
    return list({page.pixels.shape: page for page in found}.values())


def sizes_of(folder: Path) -> tuple[dict[str, Any], int]:
    """The decoder's sizes, and how many tokens a study with its chat takes at most: for the memory that is needed.

    Qwen's pictures make as many tokens as their size asks for; a slice of 512 x 512 pixels is taken for the usual one.
    """
    config = checked_config(folder)
    vision, text = config.vision_config, config.get_text_config()
    cell = vision.patch_size * getattr(vision, "spatial_merge_size", getattr(config, "scale_factor", 1))
    side = getattr(vision, "image_size", 512) // cell
    each = LABEL + int(getattr(config, "mm_tokens_per_image", side * side))
    wanted = (PageRecipe().most + 3) * each + RESERVED
    return text.to_dict() | {"tie_word_embeddings": config.tie_word_embeddings}, min(
        wanted, text.max_position_embeddings
    )


def load(checkpoint: Checkpoint) -> PictureReader:
    """The model in a folder as the hub has it; ReaderError where a file is missing, wrong or could run something."""
    folder = checkpoint.folder
    config = checked_config(folder)
    family = FAMILIES[config.model_type]
    tokenizer = tokenizer_of(folder, family, config.image_token_id)
    if len(tokenizer) > config.get_text_config().vocab_size:
        raise ReaderError(
            f"The tokenizer of '{folder}' has {len(tokenizer)} tokens, the model "
            f"{config.get_text_config().vocab_size}. They do not belong together; get the model again."
        )
    template, processor = chat_template(folder, tokenizer), picture_processor(folder, family)
    tied = ("lm_head.", "language_model.lm_head.") if config.tie_word_embeddings else ()
    tensors = Shards.open(folder).renamed(family.names, unused=tied)
    model = PictureReader(
        _network(checkpoint, config, family, tensors), family, processor, tokenizer, template,
        PageRecipe(square=family.square), name=checkpoint.name, revision=checkpoint.revision,
        ends=ends_of(folder, tokenizer),
    )  # fmt: skip
    places = {f"model.{family.language}.": "words.", "lm_head.": "head."}
    model.decoder.origins = {
        translated(name, places): tensors.origin(name) for name in tensors if name.startswith(tuple(places))
    }
    _agreed(model, folder)
    return model.eval().requires_grad_(False)


def _network(checkpoint: Checkpoint, config: Any, family: Family, tensors: Shards) -> Any:
    """transformers' own network with these tensors: the language model in the checkpoint's precision alone."""
    config._attn_implementation = "sdpa"
    network: Any = built(lambda: getattr(transformers, family.architecture)(config), tensors)
    place, words = f"model.{family.language}.", getattr(network.model, family.language)
    of_words, dtype = tensors.below(place), torch.float32 if checkpoint.precision == "fp32" else torch.bfloat16
    taken: set[str] = set()
    if checkpoint.precision in KINDS:
        taken = place_quantised(words, of_words, checkpoint.precision, checkpoint.device, None)
    placed(words, of_words, dtype, checkpoint.device, names=[name for name in of_words if name not in taken])
    placed(network.lm_head, tensors.below("lm_head."), dtype, checkpoint.device)
    rest = tensors.beside(place, "lm_head.")
    placed(network, rest, encoder_dtype(checkpoint.device), checkpoint.device, given=place)
    network.tie_weights()
    return network.requires_grad_(False).eval()


def _agreed(model: PictureReader, folder: Path) -> None:
    """ReaderError where the settings make other pictures, or of a picture other tokens, than the files say."""
    if not model.family.square:
        return
    inputs = model._inputs(Page("", np.zeros((8, 8, 3), np.uint8), Grid((1, 8, 8), np.eye(4))))
    rows, columns, cell = model.parts.size(inputs)
    made, side = (rows // cell) * (columns // cell), model.network.config.vision_config.image_size
    said = {**read_json(folder / "config.json"), **read_json(folder / "processor_config.json")}
    for name in model.family.length_names:
        if isinstance(said.get(name), int) and said[name] != made:
            raise ReaderError(
                f"A picture makes {made} tokens by the settings of '{folder}', which says {said[name]} ({name}). "
                "Its files do not belong together; get the model again."
            )
    if (rows, columns) != (side, side):
        raise ReaderError(
            f"preprocessor_config.json of '{folder}' makes pictures of {rows} x {columns} pixels, and its encoder "
            f"reads {side} x {side}. They do not belong together; get the model again."
        )
