"""Stopping a network in the midst of its work: what is asked between two of its parts, and not only between words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from MedVLMReaderLib.study import Stopped


@contextmanager
def stoppable(network: Any, stopped: Callable[[], bool]) -> Iterator[None]:
    """In here `network` looks at `stopped` before every one of its parts, and raises `Stopped` once it says True.

    Parts are all its modules, down to single layers. Nothing is asked where `network` is no torch module.
    """

    def look(*_: object) -> None:
        if stopped():
            raise Stopped

    parts = list(network.modules()) if isinstance(network, nn.Module) else []
    handles = [part.register_forward_pre_hook(look) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
