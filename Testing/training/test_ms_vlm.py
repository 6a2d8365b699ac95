"""MS-VLM's stages at tiny sizes: slices without labels, hidden slices, bridge, LoRA; the reader loads the result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import Case
from MedVLMReaderLib.models.ms_vlm import MSVLM, Template, ZFormer
from MedVLMReaderLib.models.slice_encoder import Sizes
from MedVLMReaderLib.preparation import Recipe
from MedVLMReaderLib.study import Message
from MedVLMReaderLib.training.bridge import RANKS, UNSAID, Exchanges, Told, kept_features
from MedVLMReaderLib.training.dino import Dino, HeadSizes, Views, new_encoder, view
from MedVLMReaderLib.training.engine import Settings, curve
from MedVLMReaderLib.training.masked_slices import (
    Hiding,
    Masked,
    Tokens,
    against_interpolation,
    interpolated,
    stacks_together,
)
from MedVLMReaderLib.training.ms_vlm import MEASURED, Plan, Runs, assembled, evened, language, run
from MedVLMReaderLib.training.slice_stacks import Slices, Stacks
from MedVLMReaderLib.volume import Volume
from Testing.made_scans import oblique_grid

ZFORMER = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 1,
    "pad_token_id": 0, "block_size": 16, "num_random_blocks": 3, "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
SIZES = Sizes(
    patch=8, table=32, channels=1, slice_width=16, slice_depth=1, slice_heads=2, zformer=ZFORMER, perceiver_width=16,
    perceiver_depth=1, perceiver_heads=2, head_width=8, latents=4,
)  # fmt: skip
RECIPE = Recipe(32, 12.0, (20.0, 20.0, 20.0), ((-1000.0, 600.0),), ((0.0, 1.5),))
DECODER = {
    "model_type": "qwen2", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
TEMPLATE = Template("<|user|>{image}", "{question}<|reader|>", "<|end|>", "Describe the findings.")
FEW = Settings(steps=2, batch=2, learning_rate=1e-3, log_every=1, cpu=True)
PLAN = Plan(
    SIZES, RECIPE, dino=FEW, head=HeadSizes(12, 8, 4), views=Views(few=1), masked=FEW, bridge=FEW, lora=FEW,
    ranks=replace(RANKS, rank=2), template=TEMPLATE, decoder=DECODER,
)  # fmt: skip


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """Two oblique scans with a report and a question each."""
    found = []
    for n in range(2):
        grid = oblique_grid((11 + n, 14, 13), (9.0, 12.0, 12.0), axes=(1, 2, 0), signs=(1, -1, 1))
        values = np.random.default_rng(n).integers(-900, 500, grid.shape).astype(np.int16)
        path = tmp_path / f"scan{n}.nii.gz"
        Volume(values, grid, "CT", "made").save(path)
        found.append(Case(str(path), "The heart is normal.", place=f"row {n}"))
        found.append(Case(str(path), question="Is it?", answer="yes", choices=("no", "yes"), place=f"question {n}"))
    return found


def test_all_stages_train_one_after_the_other_and_the_reader_loads_the_result(
    tmp_path: Path, cases: list[Case]
) -> None:
    from MedVLMReaderLib.files import read
    from MedVLMReaderLib.reader import Options, load

    out = tmp_path / "run"
    assert run(PLAN, cases, cases[:1], Runs(out))
    assert all(len(curve(out / stage)) == 2 for stage in ("dino", "masked", "bridge", "lora"))
    figures = json.loads((out / "masked" / MEASURED).read_text())
    assert figures["stacks"] == 3
    assert figures["all"]["rebuilt"] > 0
    reader = load(out / "model")
    seen = reader.see(read(Path(cases[0].volume)))
    *_, reading = reader.ask(seen, "Is it?", options=Options(heatmaps=False, longest=3))
    assert reading.model
    log = (out / "lora" / "log.jsonl").read_text()
    assert run(PLAN, cases, cases[:1], Runs(out))
    assert (out / "lora" / "log.jsonl").read_text() == log


def test_bridge_and_lora_leave_the_earlier_stages_and_the_decoders_own_layers_alone(
    tmp_path: Path, cases: list[Case]
) -> None:
    from safetensors.torch import load_file

    plan = replace(PLAN, lora=None)
    assert run(plan, cases, [], Runs(tmp_path / "run"))
    before = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert run(PLAN, cases, [], Runs(tmp_path / "run"))
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(("slice_encoder.", "bridge.zformer.")) for name in changed)
    assert any("q_proj" in name for name in changed)
    assert not any("mlp" in name and name.startswith("decoder.") for name in changed)
    kept = load_file(tmp_path / "run" / "lora" / "model.safetensors")
    assert {name for name in kept if name.startswith("decoder.")} == {name for name in kept if "lora_" in name}


def test_what_is_learned_stands_as_the_reader_asks_it(tmp_path: Path, cases: list[Case]) -> None:
    """The loss of an answer, from rows of unlike length, is that of the reader's own prompt."""
    decoder, _, tokenizer = language(DECODER, cases, TEMPLATE, tmp_path / "tokenizer", 0)
    model: MSVLM = assembled(PLAN, TEMPLATE, decoder, tokenizer, Runs(tmp_path / "none")).eval()
    kept = Stacks(tmp_path / "stacks", RECIPE)
    names = [case.volume for case in cases]
    paths = kept_features(model.slice_encoder, kept, names, tmp_path / "features", patches=False)
    rows = Exchanges(cases, paths, TEMPLATE, tokenizer)
    batch = rows.together([rows[0], rows[1]])
    names = batch.pop("name")
    assert names == ["row 0", "question 0"]
    loss = Told(model.bridge, decoder, SIZES.patch)(**batch)["words"]
    sums, count = 0.0, 0
    for n, case in enumerate(cases[:2]):
        from MedVLMReaderLib.files import read

        seen = model.see([read(Path(case.volume))])
        question = case.asked if case.question else TEMPLATE.report
        prompt = model.prompt(seen, [Message("user", question)]).inputs
        answer = batch["labels"][n][batch["labels"][n] != UNSAID]
        assert tokenizer.decode(answer) == (case.expected if case.question else case.report) + "<|end|>"
        given = torch.cat([prompt, model.decoder.get_input_embeddings()(answer)[None]], 1)
        scores = decoder(inputs_embeds=given).logits[0, prompt.shape[1] - 1 : -1]
        sums += float(torch.nn.functional.cross_entropy(scores, answer, reduction="sum"))
        count += len(answer)
    assert float(loss) == pytest.approx(sums / count, rel=2e-2)  # features are kept in 16 bits


# ---- Slices without labels ------------------------------------------------------------------------------------------


def test_the_teacher_follows_the_student_and_learns_nothing_by_itself() -> None:
    network = Dino(new_encoder(SIZES, 0), HeadSizes(12, 8, 4), Views(few=2), momentum=0.9)
    first = [one.clone() for one in network.teacher.parameters()]
    pictures = torch.rand(3, 1, 32, 32)
    network(pictures)["dino"].backward()
    assert all(one.grad is None for one in network.teacher.parameters())
    with torch.no_grad():
        for one in network.student.parameters():
            one += 1.0
    network(pictures)
    for was, now in zip(first, network.teacher.parameters(), strict=True):
        torch.testing.assert_close(now, was + 0.1, atol=1e-5, rtol=1e-5)
    assert network.centre.abs().sum() > 0
    still = network.eval().centre.clone()
    network(pictures)
    assert torch.equal(network.centre, still)


def test_class_tokens_come_out_around_nothing_and_one_apart_once_they_are_evened() -> None:
    encoder = new_encoder(SIZES, 0).eval()
    pictures = torch.rand(40, 1, 32, 32)
    with torch.no_grad():
        before = encoder(pictures)[:, 0]
        evened(encoder, before.mean(0), before.std(0))
        after = encoder(pictures)[:, 0]
    torch.testing.assert_close(after.mean(0), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.std(0), torch.ones(16), atol=1e-3, rtol=0)


def test_a_view_is_a_part_of_its_slice_turned_a_little_and_never_mirrored() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    shown = view(ramp.repeat(8, 1, 1, 1), (0.16, 0.36), 16, Views(grey=0.0))
    assert shown.shape == (8, 1, 16, 16)
    across = shown[..., -1].mean((1, 2)) - shown[..., 0].mean((1, 2))
    assert (across > 0.25).all()
    assert (across < 0.7).all()


def test_rows_are_every_slice_of_the_chosen_planes_with_its_neighbours(tmp_path: Path, cases: list[Case]) -> None:
    kept = Stacks(tmp_path / "stacks", RECIPE)
    stacks = kept.of(cases[0].volume)
    rows = Slices(kept, [cases[0].volume], planes=(1, 2), context=1)
    assert len(rows) == len(stacks[1].values) + len(stacks[2].values)
    last = rows[len(stacks[1].values) - 1]["pictures"].numpy()
    np.testing.assert_array_equal(last[1], stacks[1].channels(RECIPE)[-1, 0])
    np.testing.assert_array_equal(last[0], stacks[1].channels(RECIPE)[-2, 0])
    np.testing.assert_array_equal(last[2], last[1])


# ---- Hidden slices --------------------------------------------------------------------------------------------------


def masked() -> Masked:
    torch.manual_seed(0)
    return Masked(ZFormer(ZFORMER)).eval()


def test_hidden_slices_and_what_fills_a_batch_up_are_nothing_to_the_z_former() -> None:
    network, slices = masked(), torch.randn(1, 6, 16)
    hidden = torch.tensor([[False, True, False, False, True, False]])
    present = torch.ones(1, 6, dtype=torch.bool)
    first = network.rebuilt(slices, present, hidden)
    other = torch.where(hidden[..., None], torch.randn(1, 6, 16), slices)
    torch.testing.assert_close(network.rebuilt(other, present, hidden), first)
    batch = stacks_together([{"name": "a", "slices": slices[0]}, {"name": "b", "slices": torch.randn(9, 16)}])
    wide = torch.nn.functional.pad(hidden, (0, 3))
    longer = network.rebuilt(batch["slices"][:1], batch["present"][:1], wide)[:, :6]
    torch.testing.assert_close(longer, first, atol=1e-5, rtol=1e-4)


def test_interpolation_is_exact_between_known_slices_on_a_line_and_copies_beyond_them() -> None:
    line = torch.arange(7.0)[:, None] * torch.tensor([[1.0, -2.0]])
    hidden = torch.tensor([True, False, True, True, False, False, True])
    found, nothing = interpolated(torch.stack([line, line]), torch.stack([~hidden, torch.zeros(7, dtype=torch.bool)]))
    torch.testing.assert_close(found[2:4], line[2:4])
    torch.testing.assert_close(found[[0, 6]], line[[1, 5]])
    torch.testing.assert_close(found[~hidden], line[~hidden])
    assert not nothing.any()


def test_what_is_told_from_the_line_begins_as_the_line_and_learns_from_what_is_known_alone() -> None:
    torch.manual_seed(0)
    network, slices = Masked(ZFormer(ZFORMER), Hiding(from_line=True)).eval(), torch.randn(2, 9, 16)
    hidden, present = torch.rand(2, 9) < 0.4, torch.ones(2, 9, dtype=torch.bool)
    torch.testing.assert_close(network.rebuilt(slices, present, hidden), interpolated(slices, ~hidden))
    assert network.difference is not None
    torch.nn.init.normal_(network.difference.weight)
    other = torch.where(hidden[..., None], torch.randn(2, 9, 16), slices)
    torch.testing.assert_close(network.rebuilt(other, present, hidden), network.rebuilt(slices, present, hidden))


def test_errors_are_compared_on_the_same_hidden_slices() -> None:
    network = masked()
    rows = Tokens([torch.randn(n, 16) for n in (12, 9, 3)], ["a", "b", "too short"])
    assert len(rows) == 2
    figures = against_interpolation(network, rows)
    assert figures == against_interpolation(network, rows)
    for part in ("all", "inside"):
        ratio = figures[part]["rebuilt"] / figures[part]["interpolated"]
        assert figures[part]["ratio"]["value"] == pytest.approx(ratio, rel=1e-3)
    assert figures["inside"]["ratio"]["n"] < figures["all"]["ratio"]["n"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dino": replace(FEW, batch=5000)}, "slices cannot fill a batch of 5000"),
        ({"dino": None}, r"Give the file a table \[dino\]"),
        ({"dino": None, "masked": None, "template": None}, r"need a \[template\] and a \[decoder\]"),
    ],
)
def test_what_a_stage_lacks_is_told(tmp_path: Path, cases: list[Case], change: dict[str, object], said: str) -> None:
    with pytest.raises(ReaderError, match=said):
        run(replace(PLAN, **change), cases, [], Runs(tmp_path / "run"))
