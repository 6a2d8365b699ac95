"""Projector and LoRA: what learns and what does not, merged and saved as published, loaded by the reader at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import Case, made_cases
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.models.dcformer import SIZES
from MedVLMReaderLib.models.med3dvlm import REPORT, Med3DVLM
from MedVLMReaderLib.models.one_block import IMAGE
from MedVLMReaderLib.models.siglip import Sizes
from MedVLMReaderLib.reader import Options
from MedVLMReaderLib.reader import load as load_reader
from MedVLMReaderLib.study import Message
from MedVLMReaderLib.training import siglip
from MedVLMReaderLib.training.augment import Augment
from MedVLMReaderLib.training.decoder import read_decoder
from MedVLMReaderLib.training.engine import Settings
from MedVLMReaderLib.training.med3dvlm import (
    Exchanges,
    Lora,
    Stage,
    Taught,
    assembled,
    collated,
    even,
    merge,
    started,
    train,
)
from MedVLMReaderLib.training.packed import UNTOLD, packed
from MedVLMReaderLib.training.prepared import volume_of
from Testing.tiny_med3dvlm import END, qwen_tokenizer

CASES = [case for case in made_cases([3, 4], questions=True) if case.closed][:6]
SETTINGS = Settings(steps=2, batch=2, learning_rate=1e-2, cpu=True, log_every=1, freeze_norms=True)
LORA = Stage(("projector",), Lora(rank=2, alpha=4, dropout=0.0), keep_features=True)


def write_llama(folder: Path, **changes: Any) -> LlamaForCausalLM:
    """A folder of a small random Llama whose tokenizer spells."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = qwen_tokenizer("[extra]")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(1)
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer) + 6, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=tokenizer.convert_tokens_to_ids(END),
        bos_token_id=0, max_position_embeddings=512, rope_theta=30000.0,
    ))  # fmt: skip
    llama.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return llama.eval()


def write_pair(folder: Path) -> None:
    tokenizer = siglip.made_tokenizer([case.asked for case in CASES], folder / "tokenizer", words=100)
    siglip.save(siglip.new(Sizes((64, 64, 64), SIZES["nano"], 16, len(tokenizer), 64, 32, 1, 1, 64), tokenizer), folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    write_llama(folder / "llama")
    write_pair(folder / "pair")
    return folder


def new(parts: Path) -> Med3DVLM:
    return assembled(parts / "pair", parts / "llama", (6, 4), (3, 2), 2, seed=0)


# ---- The decoder that it begins with --------------------------------------------------------------------------------


def test_a_llama_becomes_the_qwen2_that_it_equals_with_one_token_more(tmp_path: Path) -> None:
    llama = write_llama(tmp_path)
    decoder, tokenizer = read_decoder(tmp_path)
    ids = torch.tensor([[5, 77, 200, 31, 9]])
    with torch.no_grad():
        ours, theirs = decoder(input_ids=ids).logits, llama(input_ids=ids).logits
    torch.testing.assert_close(ours[..., :258], theirs[..., :258], atol=1e-5, rtol=1e-5)
    assert len(tokenizer) == decoder.config.vocab_size == 259
    assert tokenizer.convert_tokens_to_ids(IMAGE) == 258
    rows = llama.get_input_embeddings().weight
    torch.testing.assert_close(decoder.get_input_embeddings().weight[258], rows[:258].mean(0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "holds a 'gpt2'"),
        ({"attention_bias": True}, "attention_bias True; only False"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "positions of the type 'llama3'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"eos_token_id": [1, 2]}, "which is no whole number"),
        ({"head_dim": 16}, "4 heads of 16, which do not make the width 32"),
        ({"num_attention_heads": "four"}, "num_attention_heads 'four'"),
        ({"num_hidden_layers": 3}, "lacks the tensor|belongs to another model"),
        ({"eos_token_id": 999}, "end with token 999"),
    ],
)
def test_a_decoder_that_med3dvlm_cannot_write_with_is_refused(tmp_path: Path, changes: dict[str, Any], said: str):
    write_llama(tmp_path, **changes)
    with pytest.raises(ReaderError, match=said):
        read_decoder(tmp_path)


# ---- What is learned ------------------------------------------------------------------------------------------------


def test_only_what_the_stage_names_learns(parts: Path, tmp_path: Path) -> None:
    model = new(parts)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert train(CASES, model, Stage(("projector",)), replace(SETTINGS, freeze_norms=True), tmp_path)
    after = model.state_dict()
    changed = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"projector"}


def test_what_comes_from_elsewhere_is_not_in_the_checkpoints(parts: Path, tmp_path: Path) -> None:
    train(CASES, new(parts), LORA, replace(SETTINGS, save_every=1), tmp_path)
    kept = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    decoder = {name for name in kept if name.startswith("model.decoder.")}
    assert decoder
    assert all(".lora_" in name for name in decoder)


def test_a_killed_training_with_lora_goes_on_with_the_same_weights(parts: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=3, save_every=1)
    stage = replace(LORA, lora=Lora(rank=2, alpha=4, dropout=0.5))
    assert train(CASES, new(parts), stage, settings, tmp_path / "whole")
    while not train(CASES, new(parts), stage, settings, tmp_path / "run", minutes=0):
        pass
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_merged_a_model_says_what_it_said_with_lora_beside(parts: Path) -> None:
    model = new(parts)
    taught = Taught(model, replace(LORA, keep_features=False))
    for name, one in model.decoder.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(one, std=0.3)
    rows = Exchanges(CASES, model, 512, lambda _: {"blocks": torch.rand(1, 64, 64, 64)})
    batch = collated([rows[0], rows[3]])
    taught.eval()
    with torch.no_grad():
        beside = taught(**{name: value for name, value in batch.items() if name != "name"})["words"]
        merge(model)
        assert not any(".lora_" in name for name in model.state_dict())
        merged = taught(**{name: value for name, value in batch.items() if name != "name"})["words"]
    torch.testing.assert_close(merged, beside, atol=1e-4, rtol=1e-4)


def test_the_loss_is_that_of_the_answer_alone_as_the_reader_asks(parts: Path) -> None:
    model = new(parts)
    case = CASES[1]
    rows = Exchanges(
        [case, Case("made:3", report="Clear.")],
        model,
        512,
        lambda _: {"low": torch.rand(8, 128), "high": torch.rand(1, 256)},
    )
    batch = collated([rows[0], rows[1]])
    answers = [model.tokenizer.decode(labels[labels >= 0]) for labels in batch["labels"]]
    assert answers == [f" {case.expected}{END}", f" Clear.{END}"]
    seen = model.eval().see([volume_of("made:3")])
    for n, question in enumerate((case.asked, REPORT)):
        asked = model.tokenizer.decode(batch["ids"][n][: rows[n]["turns"][0][1]])
        assert asked == IMAGE * 6 + (f" {question}" if question != REPORT else REPORT)
        assert model.prompt(seen, [Message("user", question)]).inputs.shape[1] == rows[n]["turns"][0][1]


def test_questions_of_a_scan_together_have_the_loss_that_they_have_one_by_one(parts: Path) -> None:
    model = new(parts)
    taught = Taught(model, replace(LORA, keep_features=False)).eval()
    blocks = {case.volume: torch.rand(1, 64, 64, 64) for case in CASES}
    losses = []
    for together in (1, 3):
        rows = Exchanges(CASES, model, 512, lambda name: {"blocks": blocks[name]}, together)
        assert [case for group in rows.groups for case in group] == list(CASES)
        assert all(len({case.volume for case in group}) == 1 for group in rows.groups)
        batch = collated([rows[n] for n in range(len(rows))])
        assert len(batch["blocks"]) == len(batch["ids"]) == len(rows)
        with torch.no_grad():
            losses.append(taught(**{name: value for name, value in batch.items() if name != "name"})["words"])
    assert len(rows) < len(CASES)
    torch.testing.assert_close(losses[1], losses[0])


def test_a_number_of_questions_together_that_is_none_is_refused() -> None:
    for wrong in (0, 2.5, True):
        with pytest.raises(ReaderError, match="together = "):
            Stage(together=wrong)  # type: ignore[arg-type]
    with pytest.raises(ReaderError, match="evened = -1"):
        Stage(evened=-1)


def test_evened_an_untrained_projector_shows_what_differs_between_scans(parts: Path, tmp_path: Path) -> None:
    model = new(parts)
    torch.manual_seed(0)
    low, high = (5 * torch.randn(width) + torch.randn(8, cells, width) for cells, width in ((8, 128), (1, 256)))

    def spread() -> float:
        with torch.no_grad():
            tokens = model.projector(low, high)
        return float(tokens.std(0).mean() / tokens.mean(0).abs().mean())

    before = spread()
    even(model, low, high)
    assert spread() > 3 * before
    with torch.no_grad():
        deviation = float(model.projector(low, high).std(0).mean())
    assert deviation == pytest.approx(float(model.decoder.get_input_embeddings().weight.std()), rel=0.1)
    with pytest.raises(ReaderError, match="needs two scans or more"):
        train(CASES, new(parts), replace(LORA, evened=1), SETTINGS, tmp_path)
    cases = [*made_cases([3, 4]), *CASES]
    assert train(cases, new(parts), replace(LORA, evened=2), replace(SETTINGS, learning_rate=1e-4), tmp_path)


def test_an_answer_right_after_the_image_is_told_from_it_alone() -> None:
    turns = [([9, 9, 1, 5, 6], 3), ([9, 9, 1, 7, 8], 3), ([9, 9, 1, 2, 3, 4], 4)]
    row = packed(turns, 3)
    assert [token for token, *_ in row] == [9, 9, 1, 5, 6, 7, 8, 2, 3, 4]
    assert [turn for _, turn, *_ in row] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert [place for *_, place, _ in row] == [0, 1, 2, 3, 4, 3, 4, 3, 4, 5]
    assert [label for *_, label in row] == [UNTOLD] * 3 + [5, 6, UNTOLD, 8, UNTOLD, 3, 4]


def test_gradient_checkpointing_and_16_bits_train_too(parts: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, gradient_checkpointing=True, precision="bf16")
    stage = Stage(("encoder", "projector", "embeddings", "head"), Lora(rank=2, alpha=4), Augment(0.5, 0.5, 0.5, 0.5))
    model = new(parts)
    before = model.encoder.s4[0].proj.weight.detach().clone()
    assert train(CASES, model, stage, settings, tmp_path)
    assert not torch.equal(before, model.encoder.s4[0].proj.weight)


# ---- The same minute in the reader ----------------------------------------------------------------------------------


def test_a_trained_model_is_loaded_by_the_reader_and_gives_the_same_answers(parts: Path, tmp_path: Path) -> None:
    model = new(parts)
    assert train(CASES, model, LORA, SETTINGS, tmp_path / "run")
    loaded = load_reader(tmp_path / "run" / "model")
    volume = volume_of("made:3")
    ours, theirs = model.eval().see([volume]), loaded.model.see([volume])  # type: ignore[attr-defined]
    torch.testing.assert_close(ours.tokens, theirs.tokens)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, loaded.model.state_dict()[name])  # type: ignore[attr-defined]
    *_, reading = loaded.ask(loaded.see(volume), CASES[0].asked, options=Options(longest=3))
    assert reading.model == "model"
    assert started(tmp_path / "run" / "model").sizes == model.sizes


RECIPE = """
system = "med3dvlm"
[data]
seeds = [3, 4]
kinds = ["closed"]
[model]
pair = "pair"
decoder = "llama"
low = [6, 4]
high = [3, 2]
trains = ["projector"]
keep_features = true
[lora]
rank = 2
targets = ["q_proj", "v_proj"]
[training]
steps = 2
batch = 2
log_every = 1
cpu = true
"""


def test_a_file_trains_the_projector_and_lora_and_the_result_is_a_start(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts / "tiny.toml").write_text(RECIPE)
    assert main(["train", str(parts / "tiny.toml"), "--out", str(tmp_path / "run")]) == 0
    assert "finished" in capsys.readouterr().out
    onwards = RECIPE.replace('pair = "pair"', f'start = "{tmp_path}/run/model"').replace('decoder = "llama"', "")
    onwards = onwards.replace("low = [6, 4]\nhigh = [3, 2]", "")
    (tmp_path / "on.toml").write_text(onwards)
    assert main(["train", str(tmp_path / "on.toml"), "--out", str(tmp_path / "on")]) == 0
    assert load_reader(tmp_path / "on" / "model").model.name == "model"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rank = 2", "rnk = 2", "the key 'rnk', which does not exist"),
        ("rank = 2", 'rank = "two"', "rank = 'two'"),
        ('"v_proj"', '"lm_head"', "the target 'lm_head'. Known: q_proj"),
        ('trains = ["projector"]', 'trains = ["eyes"]', "the part 'eyes'. Known: encoder"),
        ("keep_features = true", 'keep_features = true\nstart = "x"', "a model to go on from (start), or"),
        ('kinds = ["closed"]', 'kinds = ["shut"]', "the kind of case 'shut'"),
        ('trains = ["projector"]', 'trains = ["encoder"]', "keep_features reads every scan once"),
        ('pair = "pair"', 'pair = "llama"', "only 'dec_clip' can be read"),
        ('decoder = "llama"', 'decoder = "pair"', "holds a 'dec_clip'"),
        ('pair = "pair"\ndecoder = "llama"', 'start = "pair"', "model_type 'dec_clip'; only 'vlm_qwen' can be read"),
        ('decoder = "llama"', 'decoder = "nothing"', "is not a model's folder"),
        ("low = [6, 4]", "low = [6]", "make no Med3DVLM"),
        ("keep_features = true", "longest = 30", "nothing is left for the answer"),
        ("[lora]", "[augment]\nflip = 2\n[lora]", "from 0 to 1"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    (parts / "wrong.toml").write_text(RECIPE.replace(old, new))
    assert main(["train", str(parts / "wrong.toml"), "--out", str(tmp_path / "run")]) == 1
    assert said in capsys.readouterr().err


FAULTY = """volume,question,answer,choices,type
made:3,Is there a stone?,yes,yes|no,abnormality
made:4,Is there a stone?,no,yes|no,abnormality
made:5,Is there a stone?,,yes|no,abnormality
missing.nii,Is there a stone?,no,yes|no,abnormality
made:6,Is there a stone?,maybe,yes|no,abnormality
made:7,Is there a stone?,no,yes|no,mood
"""


def test_faults_of_a_table_are_listed_before_training_and_left_out_by_choice(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts / "faulty.csv").write_text(FAULTY)
    recipe = RECIPE.replace("seeds = [3, 4]", 'cases = "faulty.csv"')
    (parts / "faulty.toml").write_text(recipe)
    command = ["train", str(parts / "faulty.toml"), "--out", str(tmp_path / "run")]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "4 faults" in told
    for said in (
        "row 4: the answer is empty",
        "row 5: there is no",
        "row 6: the answer 'maybe'",
        "row 7: the question",
    ):
        assert said in told
    (parts / "faulty.toml").write_text(recipe.replace("[data]", "[data]\nskip_faulty = true"))
    assert main(command) == 0
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_a_table_with_other_columns_is_told(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (parts / "other.csv").write_text("scan,words\nmade:3,clear\n")
    (parts / "other.toml").write_text(RECIPE.replace("seeds = [3, 4]", 'cases = "other.csv"'))
    assert main(["train", str(parts / "other.toml"), "--out", str(tmp_path / "run")]) == 1
    assert "has the columns scan, words. Known tables have: " in capsys.readouterr().err


def test_a_run_of_another_system_is_not_gone_on_with(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text('{"global_step": 1, "max_steps": 2}')
    save_file({"pair.t_prime": torch.zeros(())}, tmp_path / "checkpoint-1" / "model.safetensors")
    with pytest.raises(ReaderError, match=r"of another system or size: 'pair\.t_prime'"):
        train(CASES, new(parts), LORA, SETTINGS, tmp_path)


def test_a_pair_whose_block_the_grids_do_not_divide_is_told(parts: Path, tmp_path: Path) -> None:
    tokenizer = siglip.made_tokenizer(["one"], tmp_path / "tokenizer", words=50)
    siglip.save(siglip.new(Sizes((32, 64, 64), SIZES["nano"], 16, len(tokenizer), 64, 32, 1, 1, 64), tokenizer),
                tmp_path / "pair")  # fmt: skip
    with pytest.raises(ReaderError, match=r"make no Med3DVLM.*multiples of 64"):
        assembled(tmp_path / "pair", parts / "llama", (6, 4), (3, 2), 2, seed=0)
