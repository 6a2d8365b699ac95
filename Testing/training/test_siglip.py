"""A pair is trained on reports, saved as published, and loaded by the reader the same minute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from MedVLMReaderLib import ReaderError, retrieval
from MedVLMReaderLib.cases import Case, made_cases
from MedVLMReaderLib.models.dcformer import SIZES
from MedVLMReaderLib.models.siglip import SiglipPair, Sizes
from MedVLMReaderLib.training.engine import Settings
from MedVLMReaderLib.training.prepared import volume_of
from MedVLMReaderLib.training.siglip import made_tokenizer, new, save, started, train

CASES = made_cases([3, 4, 5])
SETTINGS = Settings(steps=2, batch=2, learning_rate=1e-3, cpu=True, log_every=1)


def tiny(folder: Path, gain: float = 0.0) -> SiglipPair:
    tokenizer = made_tokenizer([case.report for case in CASES], folder, words=200)
    return new(Sizes((32, 64, 64), SIZES["nano"], 16, len(tokenizer), 64, 32, 1, 1, 128), tokenizer, gain=gain)


def test_a_trained_pair_is_loaded_by_the_reader_and_gives_the_same_vectors(tmp_path: Path) -> None:
    pair = tiny(tmp_path)
    before = pair.mm_vision_proj.weight.detach().clone()
    assert train(CASES, pair, SETTINGS, tmp_path / "run")
    assert not torch.equal(before, pair.mm_vision_proj.weight)
    loaded, volume = retrieval.load(tmp_path / "run" / "model"), volume_of("made:3")
    pair.eval()
    torch.testing.assert_close(loaded.of_volume(volume), pair.of_volume(volume))
    torch.testing.assert_close(loaded.of_texts([CASES[0].report]), pair.of_texts([CASES[0].report]))
    assert started(tmp_path / "run" / "model").recipe == pair.recipe


def test_a_made_tokenizer_is_the_same_every_time_and_one_that_is_kept_stays(tmp_path: Path) -> None:
    texts = [case.report for case in CASES]
    one, other = (made_tokenizer(texts, tmp_path / name).get_vocab() for name in ("one", "other"))
    assert one == other
    assert sorted(one[token] for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")) == [0, 1, 2, 3]
    assert made_tokenizer(["Something else."], tmp_path / "one").get_vocab() == one


def test_too_few_reports_for_a_batch_are_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match="1 reports cannot fill a batch of 2"):
        train(CASES[:1], tiny(tmp_path), SETTINGS, tmp_path / "run")


def test_a_volume_that_cannot_be_read_is_left_out_only_by_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad = tmp_path / "bad.nii"
    bad.write_bytes(b"no scan")
    cases = [*CASES, Case(str(bad), "A stone.", place="row 5")]
    with pytest.raises(ReaderError, match="--skip-faulty"):
        train(cases, tiny(tmp_path), SETTINGS, tmp_path / "run")
    assert train(cases, tiny(tmp_path), SETTINGS, tmp_path / "run", skip_faulty=True)
    assert "Left out: row 5" in capsys.readouterr().out


def test_saved_again_a_pair_is_the_same(tmp_path: Path) -> None:
    pair = tiny(tmp_path)
    save(pair, tmp_path / "one")
    again = started(tmp_path / "one").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in pair.state_dict().items())


def test_a_narrow_text_encoder_with_a_gain_tells_reports_apart_before_it_has_learned(tmp_path: Path) -> None:
    reports = sorted({case.report for case in CASES})
    usual, more = (float(tiny(tmp_path, gain).eval().of_texts(reports).std(0).mean()) for gain in (0.0, 1.0))
    assert more > 2 * usual
