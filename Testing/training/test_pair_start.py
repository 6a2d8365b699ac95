"""What comes before a pair: its text encoder learns from reports alone, then its image encoder from all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import made_cases
from MedVLMReaderLib.models.dcformer import SIZES
from MedVLMReaderLib.models.siglip import SiglipPair, Sizes
from MedVLMReaderLib.training.augment import NOTHING
from MedVLMReaderLib.training.engine import Settings, curve
from MedVLMReaderLib.training.pair_start import (
    Locked,
    LockedImages,
    Readings,
    align,
    all_read,
    all_seen,
    even,
    tokens_of,
)
from MedVLMReaderLib.training.siglip import Starts, made_tokenizer, new, train

CASES = made_cases([3, 4, 5])
FEW = Settings(steps=2, batch=2, learning_rate=1e-3, cpu=True, log_every=1, save_every=1)


def tiny(folder: Path) -> SiglipPair:
    tokenizer = made_tokenizer([case.report for case in CASES], folder, words=200)
    return new(Sizes((32, 64, 64), SIZES["nano"], 16, len(tokenizer), 64, 32, 1, 1, 128), tokenizer, gain=1.0)


def changed_parts(pair: SiglipPair, before: dict[str, torch.Tensor]) -> set[str]:
    state = pair.named_parameters()
    return {name.partition(".")[0] for name, tensor in state if not torch.equal(tensor, before[name])}


def test_a_reading_leaves_whole_sentences_out_and_keeps_the_first_token(tmp_path: Path) -> None:
    pair = tiny(tmp_path)
    given = tokens_of(pair, ["The liver is normal. The spleen is normal. The heart is normal.", "The spine is normal."])
    torch.manual_seed(0)
    kept = Readings(pair, 0.5).thinned(given["ids"], given["mask"])
    assert bool(kept[:, 0].all())
    assert not bool((kept > given["mask"]).any())
    for n in range(20):
        torch.manual_seed(n)
        shorter = Readings(pair, 0.5).thinned(given["ids"], given["mask"])[0]
        words = pair.tokenizer.decode(given["ids"][0][shorter.bool()], skip_special_tokens=True)
        assert words.count("normal") == words.count(".") == words.count("the")
    assert torch.equal(Readings(pair, 0.0).thinned(given["ids"], given["mask"]), given["mask"])


def test_each_stage_teaches_its_own_parts_alone(tmp_path: Path) -> None:
    pair = tiny(tmp_path)
    given = tokens_of(pair, [case.report for case in CASES])

    def stepped(network: torch.nn.Module, **batch: torch.Tensor) -> set[str]:
        before = {name: tensor.detach().clone() for name, tensor in pair.named_parameters()}
        taught = [one for one in network.parameters() if one.requires_grad]
        pair.zero_grad()
        sum(network(**batch).values()).backward()
        torch.optim.SGD(taught, 0.1).step()
        return changed_parts(pair, before)

    assert stepped(Readings(pair, 0.3).train(), **given) == {"language_encoder", "mm_language_proj"}
    locked = Locked(pair, all_read(pair, [case.report for case in CASES]), NOTHING).train()
    blocks = torch.rand(2, 1, 32, 64, 64)
    found = stepped(locked, blocks=blocks, which=torch.tensor([2, 0]))
    assert found == {"vision_encoder", "mm_vision_proj", "mm_language_proj", "t_prime", "bias"}
    images = LockedImages(pair, all_seen(pair, [blocks])).train()
    found = stepped(images, **{name: rows[:2] for name, rows in given.items()}, which=torch.tensor([1, 0]))
    assert found == {"language_encoder", "mm_vision_proj", "mm_language_proj", "t_prime", "bias"}


def test_what_is_read_once_is_what_the_pair_reads(tmp_path: Path) -> None:
    pair, reports = tiny(tmp_path), [case.report for case in CASES]
    vectors = torch.nn.functional.normalize(pair.mm_language_proj(all_read(pair, reports, at_once=2)), dim=-1)
    torch.testing.assert_close(vectors, pair.of_texts(reports))
    blocks = torch.rand(2, 1, 32, 64, 64)
    seen = torch.nn.functional.normalize(pair.mm_vision_proj(all_seen(pair, blocks[:, None])), dim=-1)
    with torch.no_grad():
        torch.testing.assert_close(seen, pair.encode_image(blocks))


def test_evened_an_untrained_image_encoder_tells_blocks_apart(tmp_path: Path) -> None:
    pair, blocks = (
        tiny(tmp_path).train(),
        torch.rand(8, 1, 32, 64, 64) * torch.linspace(0.2, 1, 8)[:, None, None, None, None],
    )

    def likeness() -> float:
        with torch.no_grad():
            vectors = pair.encode_image(blocks)
        return float((vectors @ vectors.T - torch.eye(8)).sum() / 56)

    before = likeness()
    even(pair, [blocks])
    assert before > 0.8
    assert abs(likeness()) < 0.3
    assert train(CASES, tiny(tmp_path), FEW, tmp_path / "run", starts=Starts(None, 0.3, FEW, 2))


def test_aligned_projections_find_what_both_sides_have_in_common(tmp_path: Path) -> None:
    pair = tiny(tmp_path).requires_grad_(True)
    torch.manual_seed(0)
    common, mixed = torch.randn(400, 6), [torch.randn(6, 256), torch.randn(6, 64)]
    seen, read = (5 + common @ mix + 2 * torch.randn(400, mix.shape[1]) for mix in mixed)

    def found() -> float:
        vectors = [
            torch.nn.functional.normalize(layer(rows), dim=-1)
            for layer, rows in ((pair.mm_vision_proj, seen), (pair.mm_language_proj, read))
        ]
        return float(((vectors[0] @ vectors[1].T).argmax(1) == torch.arange(400)).float().mean())

    before = found()
    align(pair, seen, read)
    assert before < 0.1
    assert found() > 0.5
    assert pair.t_prime.isfinite()
    assert pair.bias < 0


def test_stages_before_a_pair_stand_in_folders_of_their_own_and_are_not_done_twice(tmp_path: Path) -> None:
    starts = Starts(FEW, 0.3, FEW, 0, FEW, True)
    one = tiny(tmp_path)
    assert train(CASES, one, FEW, tmp_path / "run", starts=starts)
    assert [len(curve(tmp_path / "run" / name)) for name in ("text", "image", "match", ".")] == [2, 2, 2, 2]
    written = (tmp_path / "run" / "image" / "model.safetensors").stat().st_mtime_ns
    again = tiny(tmp_path)
    assert train(CASES, again, FEW, tmp_path / "run", starts=starts)
    assert (tmp_path / "run" / "image" / "model.safetensors").stat().st_mtime_ns == written
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)


def test_a_stage_that_ran_out_of_minutes_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    starts = Starts(FEW, 0.3, FEW, 0, FEW)
    assert train(CASES, tiny(tmp_path), FEW, tmp_path / "whole", starts=starts)
    calls = 0
    while not train(CASES, tiny(tmp_path), FEW, tmp_path / "parts", starts=starts, minutes=0):
        calls += 1
        assert calls < 10
    assert calls == 4
    for name in ("text", "image", "match", "."):
        losses = [[line["loss"] for line in curve(tmp_path / run / name)] for run in ("whole", "parts")]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_equal_reports_are_one_text_and_too_few_different_ones_are_told(tmp_path: Path) -> None:
    same = [CASES[0], CASES[0], CASES[0]]
    with pytest.raises(ReaderError, match=r"1 different reports cannot fill a batch of 2. Lower 'batch' in \[text\]"):
        train(same, tiny(tmp_path), FEW, tmp_path / "run", starts=Starts(FEW))
