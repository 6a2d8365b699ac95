"""Models on this machine and to be had: licence and size before anything is fetched, fetching, removing.

`Collection` is for a view: it never waits. No qt, slicer or torch.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from MedVLMReaderLib import ReaderError, hub
from MedVLMReaderLib.install.child import MARK
from MedVLMReaderLib.install.pip_words import without_passwords
from MedVLMReaderLib.install.plan import megabytes
from MedVLMReaderLib.models import CARDS, Card
from MedVLMReaderLib.worker.transport import Transport, environment

Doing = Literal["", "about", "get"]


@dataclass(frozen=True)
class Offer:
    """A model, as it is listed."""

    name: str
    title: str
    licence: str
    """With a ? where it stands on no page that could be looked up."""
    bytes: int
    """On this machine; of one that is not here, about what would be fetched."""
    gated: bool
    state: Literal["shipped", "here", "half", "absent"]
    summary: str = ""

    @property
    def line(self) -> str:
        """For a list."""
        where = {"shipped": "comes with the reader", "here": "on this machine", "absent": "not fetched",
                 "half": "half fetched: fetch it again to go on"}[self.state]  # fmt: skip
        gated = ", gated" if self.gated else ""
        about = "about " if self.state == "absent" else ""
        return f"{self.title}: {where}; {about}{megabytes(self.bytes)}{gated}; licence {self.licence}"


def offers() -> list[Offer]:
    """The table's models, then others of the hub that are on this machine."""
    here = {one.name: one for one in hub.installed()}
    found = [_offer(card, here.pop(card.source, None)) for card in CARDS.values()]
    others = (
        Offer(one.name, one.name, "see its page", one.size, False, "here" if one.whole else "half")
        for one in here.values()
    )
    return [*found, *others]


def _offer(card: Card, there: hub.Installed | None) -> Offer:
    licence = "unknown, see its page" if card.licence == "unknown" else card.licence
    licence += "?" if "licence" in card.unsure and licence == card.licence else ""
    if card.shipped:
        return Offer(card.name, card.title, licence, 2 * card.parameters, False, "shipped", card.summary)
    state: Literal["here", "half", "absent"] = "absent" if there is None else "here" if there.whole else "half"
    size = there.size if there is not None else 2 * card.parameters
    return Offer(card.name, card.title, licence, size, card.gated, state, card.summary)


def question(offer: Offer, exact: bool = False) -> str:
    """What must be agreed to before a model is fetched."""
    return f"{terms(offer, exact)} Fetch it?"


def terms(offer: Offer, exact: bool = False) -> str:
    """From where a model comes, its size and licence, and what to do first where it is gated."""
    repository = _repository(offer)
    size = f"{'' if exact else 'About '}{megabytes(offer.bytes)}"
    return (
        f"{size} will be fetched from huggingface.co/{repository} into '{at_home(hub.cache_folder())}'.\n"
        f"Licence: {offer.licence or 'none is named'}. "
        "By fetching it you accept that licence; read it on the model's page first."
        f"{gating(repository) if offer.gated else ''}\nNothing of your scans is sent."
    )


def described(offer: Offer) -> str:
    """A model as HTML for a label: what it is, its terms where it is not here, and its page as a link."""
    parts = [offer.summary, terms(offer) if offer.state in ("absent", "half") else ""]
    lines = [html.escape(line) for part in parts if part for line in part.splitlines()]
    if offer.state != "shipped":
        page = html.escape(f"https://huggingface.co/{_repository(offer)}")
        lines.append(f'<a href="{page}" style="color: palette(text)">The model\'s page, with its licence</a>')
    return "<br>".join(lines)


def _repository(offer: Offer) -> str:
    return CARDS[offer.name].source if offer.name in CARDS else offer.name


def at_home(path: Path) -> str:
    """A path without the user's name, where it lies in the user's folder."""
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)


def gating(repository: str) -> str:
    """What to do first for a model whose makers want an agreement."""
    return (
        "\nThis model is gated: its makers give it to people who have accepted their terms. Log in at "
        f"huggingface.co/{repository}, accept them, make a token (Settings, Access Tokens, read only) and put it into "
        "'Token' below. It is kept nowhere; one that 'hf auth login' or the variable HF_TOKEN keeps on this machine "
        "will do, too. Without one fetching is refused, and nothing is lost."
    )


class Collection:
    """See above. `python`: the interpreter that reads, which has the hub's client; `proxy`: the user's, "" for none."""

    def __init__(
        self, transport: Transport, python: Callable[[], str], changed: Callable[[], None] = lambda: None,
        proxy: Callable[[], str] = str,
    ) -> None:  # fmt: skip
        self.transport, self.python, self.changed, self.proxy = transport, python, changed, proxy
        self.doing: Doing = ""
        self.name = self.message = self.confirm = ""
        self.token = ""
        """Of the user, for gated models; never on a command line, in a file or in a message."""
        self.progress: tuple[int, int] | None = None
        self._waiting, self._said = b"", list[dict[str, Any]]()
        self._error, self._ended, self._stopped = "", list[int | None](), False

    def fetch(self, name: str) -> None:
        """Ask the hub what the model is; `confirm` is then what has to be agreed to. Nothing is fetched before."""
        self.message = self.confirm = ""
        if name in CARDS and CARDS[name].shipped:
            self.message = f"{CARDS[name].title} comes with the reader: nothing has to be fetched."
        elif not self.doing and (name in CARDS or hub.HUB_NAME.fullmatch(name)):
            self._start("about", name)
        elif not self.doing:
            self.message = f"'{name}' is no model of the hub. Those are written OWNER/NAME."
        self.changed()

    def agree(self, yes: bool) -> None:
        """The answer to `confirm`."""
        asked, self.confirm = self.confirm, ""
        if yes and asked and not self.doing:
            self._start("get", self.name)
        self.changed()

    def stop(self) -> None:
        """Stop fetching; what has arrived is kept."""
        if self.doing:
            self._stopped = True
            self.transport.kill()

    def remove(self, name: str) -> None:
        """Delete all that is here of a model."""
        try:
            self.message = f"{name} was removed: {megabytes(hub.remove(name))} freed."
        except ReaderError as error:
            self.message = str(error)
        self.changed()

    def advance(self) -> None:
        """Understand what has come."""
        if not self.doing:
            return
        for said in self._said:
            self._hear(said)
        self._said.clear()
        if self._ended:
            self._end(self._ended.pop())

    def _start(self, doing: Doing, name: str) -> None:
        self.doing, self.name, self.progress = doing, name, None
        self._waiting, self._error, self._stopped = b"", "", False
        self._said.clear()
        self._ended.clear()
        self.transport.on_output, self.transport.on_error_text = self._output, self._complained
        self.transport.on_exit = self._ended.append
        python = self.python()
        argv = (python, "-P", "-m", "MedVLMReaderLib.install.fetching", doing, name)
        token = {"HF_TOKEN": self.token} if self.token else {}
        proxy = {name: named for name in ("HTTPS_PROXY", "HTTP_PROXY") if (named := self.proxy())}
        self.transport.start(argv, environment(python) | token | proxy)
        self.transport.end_input()

    def _output(self, chunk: bytes) -> None:
        *lines, self._waiting = (self._waiting + chunk).split(b"\n")
        self._said += [json.loads(line[len(MARK) :]) for line in lines if line.startswith(MARK.encode())]

    def _complained(self, text: str) -> None:
        self._error = (self._error + text)[-4000:]

    def _hear(self, said: dict[str, Any]) -> None:
        if "progress" in said:
            done, total = said["progress"]
            self.progress = int(done), int(total)
        elif "refused" in said:
            self.message = without_passwords(str(said["refused"]))
        elif "done" in said and self.doing == "about":
            told = said["done"]
            known = next((one for one in offers() if one.name == self.name), None)
            licence = str(told["licence"]) or (known.licence if known else "")
            title = known.title if known else self.name
            offer = Offer(self.name, title, licence, int(told["bytes"]), bool(told["gated"]), "absent")
            self.confirm = question(offer, exact=True)
        elif "done" in said:
            self.message = " ".join([f"{self.name} is here and whole.", *said["done"]["notes"]])
        self.changed()

    def _end(self, code: int | None) -> None:
        for said in self._said:
            self._hear(said)
        self._said.clear()
        if self._stopped:
            self.message = "Stopped. What has arrived is kept; fetch it again to go on."
        elif code != 0 and not self.message:
            last = next((line for line in reversed(self._error.splitlines()) if line.strip()), "nothing was said")
            self.message = f"The model could not be fetched: {without_passwords(last)[:300]}. Try again."
        self.doing, self.progress = "", None
        self.changed()
