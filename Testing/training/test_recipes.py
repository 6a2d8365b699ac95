"""`train FILE.toml` from the command line: it trains, goes on, and says what a file has that does not exist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from MedVLMReaderLib import retrieval
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.commands.recipes import read_recipe

SHIPPED = Path(__file__).resolve().parents[2] / "Resources" / "training"
TINY = """
system = "siglip"
[data]
seeds = [3, 5]
[model]
vision = "nano"
shape = [32, 64, 64]
width = 16
text_width = 64
text_hidden = 32
text_layers = 1
text_heads = 1
positions = 128
[training]
steps = 2
batch = 2
log_every = 1
cpu = true
"""


def test_a_file_trains_a_pair_that_the_reader_loads_and_a_second_call_has_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    command = ["train", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert "finished" in capsys.readouterr().out
    assert retrieval.load(tmp_path / "run" / "model").recipe.shape == (32, 64, 64)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert main(command) == 0
    assert (tmp_path / "run" / "log.jsonl").read_text() == log


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_file_has_keys_that_exist(path: Path) -> None:
    from MedVLMReaderLib.commands import insight
    from MedVLMReaderLib.commands.ms_vlm import plan_of
    from MedVLMReaderLib.training.engine import Settings

    content = read_recipe(path)
    if content["system"] == "ms_vlm":
        plan = plan_of(content)
        stages = [one for one in (plan.dino, plan.masked, plan.bridge, plan.lora) if one]
    elif content["system"] == "med3dinsight":
        stages = [insight.plan_of(content).training, insight.plan_of(content).teacher_training]
    else:
        names = ("text", "image", "match", "training")
        own = {"dropped", "evened", "aligned"}
        tables = [{k: v for k, v in content[name].items() if k not in own} for name in names if name in content]
        stages = [Settings.from_table(table) for table in tables]
    assert stages
    assert all(stage.steps >= 100 for stage in stages)


def test_a_file_without_training_ends_with_the_stage_of_the_images(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY.replace("[training]", "[image]\nevened = 2"))
    assert main(["train", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / "log.jsonl").exists()
    assert retrieval.load(tmp_path / "run" / "model").recipe.shape == (32, 64, 64)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("log_every", "log_evry", "the key 'log_evry', which does not exist"),
        ("[data]", "[data]\nshuffle = 1", "the key 'shuffle', which does not exist"),
        ("[model]", "[network]", "the key 'network', which does not exist"),
        ('"siglip"', '"clip"', "the system 'clip'. Known: siglip, med3dvlm"),
        ("[data]", "[lora]\nrank = 2\n[data]", "the key 'lora', which does not exist"),
        ("[data]", "[augment]\nturn = 1\n[data]", "the key 'turn', which does not exist"),
        ("[data]", "[text]\ndrop = 1\n[data]", "[text] has the key 'drop', which does not exist"),
        ("[data]", "[text]\ndropped = 1\n[data]", "[text] has dropped = 1; it should be a share of the sentences"),
        ("[data]", "[text]\nbatch = 1\n[data]", "A batch of one has no other report to compare with"),
        ("[data]", "[image]\nevened = 1\nbatch = 2\n[data]", "[image] has evened = 1; it should be a number of scans"),
        ("[data]", "[match]\naligned = 1\n[data]", "[match] has aligned = 1; it should be true or false"),
        ("[data]", "[match]\nevened = 2\n[data]", "[match] has the key 'evened', which does not exist"),
        ("[data]", "[image]\nstep = 1\n[data]", "[image] has the key 'step', which does not exist"),
        ("seeds = [3, 5]", "", "a data set (cases) or made studies (seeds)"),
        ("batch = 2", "batch = 1", "A batch of one has no other report to compare with"),
        ('"nano"', '"huge"', "the vision encoder 'huge'"),
        ("[data]", "[data", "is no TOML"),
        ("[model]", "augment = 3\n[model]", "the key 'augment', which does not exist"),
        ('system = "siglip"', 'system = "siglip"\naugment = 3', "augment = 3; it should be a table: [augment]"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY.replace(old, new))
    assert main(["train", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[masked]", "[masked]\nshuffle = 1", "[masked] has the key 'shuffle', which does not exist"),
        ("share = 0.3", "share = 3", "[masked] hides a share of 3 of the slices"),
        ("from_line = true", 'from_line = "yes"', "[masked] has from_line = 'yes'"),
        ("momentum = 0.99", "momntum = 0.99", "[dino] has the key 'momntum', which does not exist"),
        ('["axial"]', '["oblique"]', "the planes ['oblique']. Known: axial"),
        ("patch = 12", "patch = 10", "patch 10 with table 96"),
        ("size = 96", "size = 100", "Pictures of 100"),
        ("slice_depth = 4", "slice_dept = 4", "slice_dept"),
        ("pixel_mm = 4.5", "pixel_cm = 4.5", "pixel_cm"),
    ],
)
def test_what_is_wrong_with_a_file_of_ms_vlm_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    text = (SHIPPED / "made-ms-vlm.toml").read_text().replace("1000399", "1000001").replace("900029", "900001")
    assert old in text
    (tmp_path / "tiny.toml").write_text(text.replace(old, new))
    assert main(["train", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]) == 1
    assert said in capsys.readouterr().err


def test_the_file_for_many_gpus_is_one_that_accelerate_reads() -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import FullyShardedDataParallelPlugin

    config = load_config_from_file(str(SHIPPED / "fsdp.yaml"))
    assert (config.distributed_type, config.mixed_precision) == ("FSDP", "bf16")
    elsewhere = {"offload_params": "cpu_offload", "version": "fsdp_version"}
    names = {elsewhere.get(name.removeprefix("fsdp_"), name.removeprefix("fsdp_")) for name in config.fsdp_config}
    assert names <= set(FullyShardedDataParallelPlugin.__dataclass_fields__)


ACCELERATE = ("accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1", "--mixed_precision=no",
              "--dynamo_backend=no")  # fmt: skip
TORCHRUN = "torch.distributed.run", "--standalone", "--nproc-per-node=2"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN], ids=["accelerate", "two processes"])
def test_a_launcher_trains_by_the_same_file(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    (tmp_path / "tiny.toml").write_text(TINY.replace("[3, 5]", "[3, 6]"))
    how = [sys.executable, "-m", *launcher, "-m", "MedVLMReaderLib"]
    command = [*how, "train", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=SHIPPED.parents[1], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert retrieval.load(tmp_path / "run" / "model").recipe.shape == (32, 64, 64)
