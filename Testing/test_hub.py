"""Models from a hub: taken up again after a break, every byte checked, nothing half taken for whole, nothing run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from safetensors.torch import load_file, save_file

from MedVLMReaderLib import ReaderError, hub
from MedVLMReaderLib.cli import main
from MedVLMReaderLib.commands.terminal import fetching
from MedVLMReaderLib.models import CARDS
from MedVLMReaderLib.reader import load
from MedVLMReaderLib.shards import PICKLE_NOTE
from Testing.small_hub import COMMIT, SmallHub

TOKEN = "hf_" + "secret" * 5


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's library."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    return tmp_path / "cache"


@pytest.fixture
def served(tiny_model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    """The tiny model on a hub, its weights in two shards, with a program beside them that nobody wants."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "published"))
    sharded(folder)
    (folder / "modeling.py").write_text("raise SystemExit('run')")
    with SmallHub(folder).running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        close_session()
        yield running
        close_session()


def sharded(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    table = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        table |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def refused(name: str = "clinic/tiny", **more: object) -> str:
    with pytest.raises(ReaderError) as told:
        hub.find(name, **more)  # type: ignore[arg-type]
    return str(told.value)


def test_the_command_line_says_what_it_fetches_and_under_which_licence_before_it_does(served, capsys):
    assert main(["models", "--get", "clinic/tiny"]) == 0
    told = "Fetching 'clinic/tiny' from https://huggingface.co/clinic/tiny: licence as its page says."
    said = capsys.readouterr().err
    assert said.startswith(told)
    assert said.count("Fetching") == 1
    assert main(["models", "--get", "clinic/tiny"]) == 0
    assert "Fetching" not in capsys.readouterr().err, "it is here"
    assert "about 8.6 GB, licence Health AI Developer Foundations" in fetching("medgemma-1.5")


def test_progress_begins_before_any_weight_is_asked_for(served):
    asked: list[int] = []
    hub.find("clinic/tiny", progress=lambda *_: asked.append(len(served.ranges(".safetensors"))))
    assert asked[0] == 0
    assert asked[-1] == 2


def test_a_model_of_the_hub_is_fetched_checked_and_read(served, body_ct):
    reader = load("clinic/tiny")
    assert reader.model.revision == COMMIT
    assert reader.model.name == "clinic/tiny"
    assert reader.report(reader.see(body_ct)).revision == COMMIT
    found = hub.find("clinic/tiny")
    assert not (found.folder / "modeling.py").exists()
    assert not any(path.endswith(".py") for _, path, _ in served.asked)


def test_what_is_here_and_whole_is_used_without_asking_anybody(served):
    hub.find("clinic/tiny")
    served.asked.clear()
    for revision in (None, COMMIT):
        assert hub.find("clinic/tiny", revision=revision).revision == COMMIT
    assert hub.find("clinic/tiny", revision="main", offline_only=True).revision == COMMIT
    assert served.asked == []


def test_a_branch_that_has_moved_on_is_fetched_anew_and_without_naming_it_nothing_changes(served):
    hub.find("clinic/tiny")
    served.commit = "facade00" * 5
    assert hub.find("clinic/tiny").revision == COMMIT
    assert hub.find("clinic/tiny", revision="main").revision == served.commit
    assert hub.find("clinic/tiny").revision == served.commit
    assert hub.find("clinic/tiny", revision=COMMIT).revision == COMMIT


def test_an_interrupted_transfer_goes_on_where_it_broke_off_and_is_never_taken_for_whole(served):
    served.cut_after = 3000
    assert "broke off. What has arrived is kept" in refused()
    assert "not whole" in refused(offline_only=True)
    assert [one.whole for one in hub.installed() if one.name == "clinic/tiny"] in ([], [False])
    served.cut_after = None
    served.asked.clear()
    found = hub.find("clinic/tiny")
    resumed = [one for one in served.ranges("") if one]
    assert resumed
    assert all(int(one.removeprefix("bytes=").rstrip("-")) >= 9000 for one in resumed)
    for path in served.folder.glob("*.safetensors"):
        assert (found.folder / path.name).read_bytes() == path.read_bytes()
    assert not list(hub.repository_folder("clinic/tiny").rglob("*.part"))


def test_a_break_now_and_then_is_not_even_noticed(served):
    largest = max(path.stat().st_size for path in served.folder.iterdir())
    served.cut_after = largest // 2 + 1000
    assert hub.find("clinic/tiny").revision == COMMIT


@pytest.mark.parametrize("file", ["model-00001-of-00002.safetensors", "config.json", "model.safetensors.index.json"])
def test_a_flipped_byte_is_caught_and_fetched_again(served, file):
    served.flip = file
    assert f"{file} of 'clinic/tiny' arrived damaged" in refused()
    assert "not whole" in refused(offline_only=True)
    served.flip = ""
    assert hub.find("clinic/tiny").revision == COMMIT


@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_snapshot_that_lost_something_is_completed_again_and_offline_refused(served, how):
    found = hub.find("clinic/tiny")
    shard = (found.folder / "model-00002-of-00002.safetensors").resolve()
    if how == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-7])
    told = refused(offline_only=True)
    assert "models --get clinic/tiny" in told
    assert hub.find("clinic/tiny").folder == found.folder
    assert shard.is_file()


def test_a_changed_byte_in_the_cache_is_found_by_reading_all(served):
    found = hub.find("clinic/tiny")
    hub.check_files(found)
    shard = (found.folder / "model-00001-of-00002.safetensors").resolve()
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
    with pytest.raises(ReaderError, match=r"model-00001-of-00002\.safetensors of clinic/tiny is damaged"):
        hub.check_files(found)
    assert hub.get("clinic/tiny") == found
    hub.check_files(found)


def test_a_shard_that_the_index_lists_and_the_hub_lacks_is_named_before_any_weights_are_fetched(served):
    (served.folder / "model-00002-of-00002.safetensors").unlink()
    assert "lacks model-00002-of-00002.safetensors, which its model.safetensors.index.json lists" in refused()
    assert served.ranges(".safetensors") == []


def test_a_snapshot_of_another_program_is_verified_before_it_is_used_offline(served):
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download("clinic/tiny", cache_dir=hub.cache_folder(), ignore_patterns=["*.py"]))
    assert hub.find("clinic/tiny", offline_only=True).folder == folder
    hub.mark_file("clinic/tiny", COMMIT).unlink()
    shard = (folder / "model-00001-of-00002.safetensors").resolve()
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
    assert "is damaged" in refused(offline_only=True)
    shard.write_bytes(content)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "models --get clinic/tiny" in refused(offline_only=True)


def test_offline_and_not_here_says_how_to_get_it(served, monkeypatch):
    assert "With a connection run once: medvlmreader models --get clinic/tiny --revision v2" in refused(
        revision="v2", offline_only=True
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "the network is off" in refused()
    assert served.asked == []


def test_a_gated_model_says_how_to_get_access_and_never_the_token(served, monkeypatch):
    served.gated, served.token = True, TOKEN
    told = refused()
    assert "https://huggingface.co/clinic/tiny" in told
    assert "hf auth login" in told
    monkeypatch.setenv("HF_TOKEN", "hf_wrong" + TOKEN)
    with pytest.raises(ReaderError) as error:
        hub.find("clinic/tiny")
    assert "gated" in str(error.value)
    assert "secret" not in "".join(map(str, (error.value, error.value.__cause__)))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.find("clinic/tiny").revision == COMMIT
    assert not any("secret" in path.read_text() for path in hub.repository_folder("clinic/tiny").rglob("*.json"))


def test_a_model_or_a_revision_that_is_not_there_is_told(served):
    assert "There is no model 'clinic/tony', or it is private" in refused("clinic/tony")
    assert "no revision 'v9'" in refused(revision="v9")


def test_a_hub_that_cannot_be_reached_is_told(served, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused()


def test_an_unknown_name_lists_the_known_ones(cache):
    told = refused("gpt")
    assert all(name in told for name in CARDS)


@pytest.mark.parametrize("name", ["../x/y", "a/../b", "a/b/c", "a b/c", "-/x", "models/x/y"])
def test_a_name_that_leads_elsewhere_is_no_model(cache, name):
    assert "No model" in refused(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "evil", "system": None}, "kind 'evil', which is known neither here"),
        ({"layers": 10**9}, "layers 1000000000: not a size that any model has"),
        ({"text_config": {"hidden_size": 1 << 60}}, "text_config.hidden_size"),
        ({"scale": float("nan")}, "scale nan"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_refused_before_the_weights_are_fetched(served, change, said):
    config = {**json.loads((served.folder / "config.json").read_text()), **change}
    config = {name: value for name, value in config.items() if value is not None}
    (served.folder / "config.json").write_text(json.dumps(config))
    assert said in refused()
    assert served.ranges(".safetensors") == []


def test_code_that_a_repository_brings_is_ignored_and_said(served):
    config = json.loads((served.folder / "config.json").read_text())
    (served.folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling.Model"}}))
    found = hub.find("clinic/tiny")
    assert any("auto_map" in note and "ignored" in note for note in found.notes)
    assert hub.find("clinic/tiny").notes == found.notes


def test_weights_as_a_pickle_are_read_as_tensors_alone_and_said(served, body_ct):
    as_pickle(served.folder)
    reader = load("clinic/tiny")
    assert PICKLE_NOTE in reader.see(body_ct).notes


def test_a_pickle_with_code_in_it_is_refused_and_nothing_runs(served, tmp_path):
    class Opened:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "opened"),)

    as_pickle(served.folder)
    with (served.folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weights": Opened()}, file)
    assert "more than tensors" in refused()
    assert "not whole" in refused(offline_only=True)
    assert not (tmp_path / "opened").exists()


def as_pickle(folder: Path) -> None:
    tensors = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    for file in folder.glob("model*"):
        if file.name != "modeling.py":
            file.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def test_what_is_installed_is_listed_and_removed(served):
    assert hub.installed() == []
    hub.find("clinic/tiny")
    (one,) = hub.installed()
    assert (one.name, one.revision, one.whole) == ("clinic/tiny", COMMIT, True)
    assert one.size > sum(path.stat().st_size for path in served.folder.glob("*.safetensors"))
    assert hub.remove("clinic/tiny") == one.size
    assert hub.installed() == []
    assert not hub.repository_folder("clinic/tiny").exists()


@pytest.mark.parametrize("name", ["built-in", "clinic/tony", "../cache", "/"])
def test_what_is_no_model_of_the_cache_is_not_removed(served, name, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ReaderError):
        hub.remove(name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_is_too_small_is_told_before_the_weights_are_fetched(served, monkeypatch):
    usage = shutil.disk_usage(served.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    assert "Make room" in refused()
    assert served.ranges(".safetensors") == []
