"""The tool that compares our networks with published numbers: what it says, and when it says no."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from Testing.parity import all_kinds, compared, filled_by_name, greedy, made, main, published_name, results
from Testing.published import PARITY, needs_parity

ROOT = Path(__file__).resolve().parent.parent
SMALL = "m3d_spp_tiny", "msvlm_perceiver_tiny"
"""Fixtures that take no time."""


@pytest.fixture
def fixtures(tmp_path: Path) -> Path:
    """A folder of two published fixtures, to be changed."""
    entries = json.loads((PARITY / "configs.json").read_text())
    (tmp_path / "configs.json").write_text(json.dumps({name: entries[name] for name in SMALL}))
    for name in SMALL:
        shutil.copy(PARITY / f"{name}.safetensors", tmp_path)
    return tmp_path


def change(folder: Path, name: str, **fields: Any) -> None:
    entries = json.loads((folder / "configs.json").read_text())
    entries[name] |= fields
    (folder / "configs.json").write_text(json.dumps(entries))


@needs_parity
def test_the_tool_runs_by_itself_and_ends_with_0_where_all_is_right(fixtures: Path) -> None:
    done = subprocess.run(
        [sys.executable, "Testing/parity.py", str(fixtures)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[:2]] == [["ok", name] for name in SMALL]


@needs_parity
def test_an_unknown_kind_is_told_and_the_others_are_tried(fixtures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(fixtures, SMALL[0], kind="hologram")
    assert main([str(fixtures)]) == 1
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"FAILS  {SMALL[0]}")
    assert "unknown kind 'hologram'" in first
    assert second.startswith(f"ok     {SMALL[1]}")
    assert last.startswith("1 ")


@needs_parity
@pytest.mark.parametrize("what", ["number", "shape", "nan", "no file", "no output", "sizes", "integer"])
def test_what_is_not_as_published_fails(fixtures: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = fixtures / f"{SMALL[0]}.safetensors"
    tensors = load_file(path)
    if what == "number":
        tensors["out"][0, 0, 5] += 2e-3
    elif what == "shape":
        tensors["out"] = tensors["out"][:1].clone()
    elif what == "nan":
        tensors["out"][0, 0, 5] = torch.nan
    elif what == "integer":
        tensors["out"] = tensors["out"].long()
    elif what == "no output":
        change(fixtures, SMALL[0], outputs={"gradient": "of the input"})
    elif what == "sizes":
        entry = json.loads((fixtures / "configs.json").read_text())[SMALL[0]]
        change(fixtures, SMALL[0], args={**entry["args"], "in_dim": 47})
    save_file(tensors, path)
    if what == "no file":
        path.unlink()
    assert main([str(fixtures)]) == 1
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("FAILS")
    assert second.startswith("ok")


@needs_parity
def test_an_output_described_as_a_slice_is_that_slice_of_ours(fixtures: Path) -> None:
    path = fixtures / f"{SMALL[1]}.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "few": tensors["out"][:, :, 1::3, -7:].clone()}, path)
    change(fixtures, SMALL[1], outputs={"few": "some latents: out[:, :, 1::3, -7:]"})
    (result,) = results(fixtures, all_kinds(), SMALL[1])
    assert result.right, result


@needs_parity
def test_an_output_that_is_for_the_record_is_not_asked_for(fixtures: Path) -> None:
    change(fixtures, SMALL[0], outputs={"out": "tokens", "old": "another branch: for the record, not to be reproduced"})
    (result,) = results(fixtures, all_kinds(), SMALL[0])
    assert result.right
    assert "old not compared" in result.said


def test_an_input_from_a_seed_is_drawn_as_numpy_draws_it(tmp_path: Path) -> None:
    drawn = np.random.RandomState(3).rand(2, 5).astype(np.float32)
    save_file({"out": torch.from_numpy(drawn) * 2}, tmp_path / "one.safetensors")
    entry = {"kind": "double", "args": {}, "inputs": {"x": {"rand_seed": 3, "shape": [2, 5]}},
             "outputs": {"out": "twice"}, "atol": 1e-6, "rtol": 0}  # fmt: skip
    result = compared(tmp_path, "one", entry, {"double": lambda args, tensors, entry: {"out": tensors["x"] * 2}})
    assert result.right, result


def test_weights_follow_from_the_published_name_alone() -> None:
    network = torch.nn.ModuleDict({"bn": torch.nn.BatchNorm1d(3), "fc": torch.nn.Linear(3, 2)})
    network.register_parameter("scale", torch.nn.Parameter(torch.zeros(3)))
    network.register_parameter("bare", torch.nn.Parameter(torch.zeros(())))
    filled_by_name(network, {"model.norm.": "bn."}, {"keep_initial": {"bare": 2.5}})
    state = network.state_dict()
    assert state["bare"] == 2.5
    assert (state["bn.running_var"] >= 1).all()
    assert state["bn.num_batches_tracked"] == 0
    torch.testing.assert_close(state["bn.weight"], made("model.norm.weight", (3,)))
    assert not torch.equal(state["bn.weight"], made("bn.weight", (3,)))
    assert state["fc.weight"].abs().max() < 3
    assert made("x", ()).shape == ()


def test_a_name_is_translated_back_by_the_longest_beginning_that_fits() -> None:
    names = {"model.": "decoder.model.", "model.tower.": "decoder.model.tower.", "head.": "decoder.head."}
    assert published_name("decoder.model.tower.x", names) == "model.tower.x"
    assert published_name("decoder.model.layers.x", names) == "model.layers.x"
    assert published_name("other", names) == "other"


def test_greedy_takes_the_likeliest_token_each_time() -> None:
    from MedVLMReaderLib.weights import new_decoder

    torch.manual_seed(0)
    decoder = new_decoder({"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                           "intermediate_size": 16, "vocab_size": 20, "eos_token_id": 3}).eval()  # fmt: skip
    inputs = torch.randn(1, 4, 16)
    with torch.no_grad():
        expected = decoder.generate(inputs_embeds=inputs, max_new_tokens=6, min_new_tokens=6, eos_token_id=None,
                                    do_sample=False, pad_token_id=0)  # fmt: skip
        assert torch.equal(greedy(decoder, inputs, 6), expected)


def test_a_folder_without_fixtures_is_typed_wrongly(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 2
    assert main([]) == 2
