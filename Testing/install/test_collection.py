"""Models from the module: licence and size first, then fetching and removing; a hub on loopback, the real client."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from MedVLMReaderLib import hub
from MedVLMReaderLib.install.collection import Collection, described, offers, question
from MedVLMReaderLib.install.plan import megabytes
from MedVLMReaderLib.models import CARDS
from MedVLMReaderLib.worker.transport import SubprocessTransport
from Testing.install.wheels import driven
from Testing.small_hub import COMMIT, SmallHub


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def served(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "published"))
    with SmallHub(folder, licence="cc-by-4.0", token="hf_right").running() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


class Desk:
    def __init__(self) -> None:
        self.transport = SubprocessTransport()
        self.models = Collection(self.transport, lambda: sys.executable)

    def until(self, done: Callable[[], bool]) -> None:
        driven(self.models, self.transport, done, 120)

    def settle(self) -> str:
        self.until(lambda: not self.models.doing)
        return self.models.message


def test_licence_and_size_are_told_before_anything_is_fetched_and_it_can_be_removed(
    served: SmallHub, cache: Path
) -> None:
    desk = Desk()
    desk.models.fetch("clinic/tiny")
    assert desk.settle() == ""
    size = sum(path.stat().st_size for path in served.folder.iterdir() if path.suffix in (".json", ".safetensors"))
    assert "huggingface.co/clinic/tiny" in desk.models.confirm
    assert "Licence: cc-by-4.0" in desk.models.confirm
    assert f"{megabytes(size)} will be fetched" in desk.models.confirm
    assert served.ranges(".safetensors") == []
    assert not cache.exists()
    desk.models.agree(False)
    assert (desk.models.doing, desk.models.confirm) == ("", "")
    assert not cache.exists()
    desk.models.fetch("clinic/tiny")
    desk.settle()
    desk.models.agree(True)
    seen = []
    while desk.models.doing:
        desk.transport.poll(0.02)
        desk.models.advance()
        seen += [desk.models.progress] if desk.models.progress else []
    assert desk.models.message == "clinic/tiny is here and whole."
    assert seen
    (there,) = [one for one in offers() if one.name == "clinic/tiny"]
    assert there.state == "here"
    assert hub.installed()[0].revision == COMMIT
    desk.models.remove("clinic/tiny")
    assert desk.models.message.startswith("clinic/tiny was removed")
    assert [one for one in offers() if one.name == "clinic/tiny"] == []


def test_a_gated_model_says_what_to_do_first_and_a_refusal_loses_nothing(served: SmallHub) -> None:
    served.gated = True
    desk = Desk()
    desk.models.fetch("clinic/tiny")
    desk.settle()
    for words in ("This model is gated", "accept", "'Token' below", "HF_TOKEN"):
        assert words in desk.models.confirm
    desk.models.agree(True)
    assert "is gated" in desk.settle()
    desk.models.token = "hf_right"
    desk.models.fetch("clinic/tiny")
    desk.settle()
    desk.models.agree(True)
    assert desk.settle() == "clinic/tiny is here and whole."


def test_the_proxy_of_set_up_is_used_for_models_too(served: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    desk = Desk()
    desk.models.proxy = lambda: served.endpoint
    desk.models.fetch("clinic/tiny")
    assert desk.settle() == ""
    assert "Licence: cc-by-4.0" in desk.models.confirm
    assert served.asked
    assert all(path.startswith("http://hub.invalid/") for _, path, _ in served.asked)


def test_a_name_that_is_none_and_the_built_in_model_ask_nobody() -> None:
    desk = Desk()
    desk.models.fetch("no such thing")
    assert "OWNER/NAME" in desk.models.message
    desk.models.fetch("built-in")
    assert "comes with the reader" in desk.models.message
    assert desk.models.doing == ""


def test_without_a_hub_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    desk = Desk()
    desk.models.fetch("clinic/tiny")
    assert "cannot be reached" in desk.settle() or "broke off" in desk.models.message


def test_every_model_of_the_table_is_offered_with_licence_and_size() -> None:
    listed = {one.name: one for one in offers()}
    assert set(CARDS) <= set(listed)
    for name, card in CARDS.items():
        offer = listed[name]
        assert card.licence in offer.line
        assert "GB" in offer.line or "MB" in offer.line
        assert offer.licence.endswith("?") == ("licence" in card.unsure and card.licence != "unknown"), name
        page = f'<a href="https://huggingface.co/{card.source}" '
        assert (page in described(offer)) != card.shipped
        if not card.shipped:
            assert card.licence in described(offer)
            assert "Fetch it?" not in described(offer)
            asked = question(offer)
            assert card.licence in asked
            assert f"huggingface.co/{card.source}" in asked
            assert ("gated" in asked) == card.gated


def test_a_half_fetched_model_is_listed_and_can_be_removed(cache: Path) -> None:
    blobs = cache / "models--clinic--half" / "blobs"
    blobs.mkdir(parents=True)
    (cache / "models--clinic--half" / "medvlmreader").mkdir()
    (blobs / "0.part").write_bytes(b"0" * 5000)
    (half,) = [one for one in offers() if one.name == "clinic/half"]
    assert half.state == "half"
    assert "fetch it again to go on" in half.line
    assert Desk().models.message == ""
    desk = Desk()
    desk.models.remove("clinic/half")
    assert not blobs.exists()
