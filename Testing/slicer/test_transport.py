"""The worker's lines through qt.QProcess, as in Slicer: what every transport must do."""

from __future__ import annotations

import pytest

from MedVLMReaderLib.worker.qprocess import ProcessTransport
from MedVLMReaderLib.worker.transport import Transport
from Testing.slicer import pythonqt
from Testing.slicer.core import SlicerCore
from Testing.slicer.host import Host
from Testing.worker.transports import TransportTests


class TestProcessTransport(TransportTests):
    @pytest.fixture
    def transport(self, whole_core: SlicerCore) -> Transport:
        host = Host(whole_core)
        made = ProcessTransport(host.qt, host.qt.QApplication.processEvents)
        yield made
        made.close()
        assert all(made.connected)
        assert pythonqt.slot_errors == []
