"""What every `Transport` must do. Subclass it with a fixture `transport`; `drive` may turn another loop than `poll`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import pytest

from MedVLMReaderLib.worker.transport import Transport

ECHO = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    print("said", line.strip(), flush=True)
print("bye", flush=True)
sys.exit(3)
"""


class Heard:
    """What a transport has told, in order."""

    def __init__(self, transport: Transport) -> None:
        self.output, self.errors, self.exits, self.order = b"", "", [], []
        transport.on_output = self._output
        transport.on_error_text = self._error
        transport.on_exit = self._exit

    def _output(self, chunk: bytes) -> None:
        assert isinstance(chunk, bytes)
        self.output += chunk
        self.order.append("output")

    def _error(self, text: str) -> None:
        assert isinstance(text, str)
        self.errors += text

    def _exit(self, code: int | None) -> None:
        self.exits.append(code)
        self.order.append("exit")


class TransportTests:
    def drive(self, transport: Transport, until: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, "nothing came"
            transport.poll(0.02)

    @pytest.fixture
    def heard(self, transport: Transport) -> Heard:
        return Heard(transport)

    def start(self, transport: Transport, program: str, *words: str, **environment: str) -> None:
        transport.start([sys.executable, "-c", program, *words], {**os.environ, **environment})

    def test_lines_go_there_and_back_and_the_exit_comes_last(self, transport, heard):
        self.start(transport, ECHO)
        transport.send("ä\n".encode())
        transport.send(b"two\n")
        self.drive(transport, lambda: b"said two" in heard.output)
        assert heard.output.decode().split("\n")[:3] == ["ready", "said ä", "said two"]
        transport.end_input()
        self.drive(transport, lambda: bool(heard.exits))
        assert heard.output.rstrip().endswith(b"bye")
        assert heard.exits == [3]
        assert heard.order[-1] == "exit"

    def test_errors_are_kept_apart_and_the_environment_is_as_given(self, transport, heard):
        self.start(transport, "import os, sys; print(os.environ['X']); print('oh', file=sys.stderr)", X="42")
        self.drive(transport, lambda: bool(heard.exits))
        assert heard.output.strip() == b"42"
        assert heard.errors.strip() == "oh"

    def test_killed_it_says_so_once_and_can_be_started_again(self, transport, heard):
        self.start(transport, ECHO)
        self.drive(transport, lambda: b"ready" in heard.output)
        transport.kill()
        assert heard.exits == []
        self.drive(transport, lambda: bool(heard.exits))
        assert heard.exits[0] is not None
        assert heard.exits[0] != 0
        transport.send(b"to nobody\n")
        heard.output = b""
        self.start(transport, ECHO)
        transport.end_input()
        self.drive(transport, lambda: len(heard.exits) == 2)
        assert heard.output.split() == [b"ready", b"bye"]

    def test_a_program_that_is_not_there_is_an_exit_without_a_code(self, transport, heard):
        transport.start(["/nowhere/python", "-c", "pass"], dict(os.environ))
        assert heard.exits == []
        self.drive(transport, lambda: bool(heard.exits))
        assert heard.exits == [None]

    def test_much_output_arrives_whole(self, transport, heard):
        self.start(transport, "import sys; sys.stdout.write('x' * 3_000_000)")
        self.drive(transport, lambda: bool(heard.exits))
        assert len(heard.output) == 3_000_000

    def test_a_long_line_is_passed_on_while_the_program_does_not_read(self, transport, heard):
        self.start(transport, "import sys, time; time.sleep(0.3); print(len(sys.stdin.readline()))")
        began = time.monotonic()
        transport.send(b"y" * 500_000 + b"\n")
        assert time.monotonic() - began < 0.2
        self.drive(transport, lambda: bool(heard.exits))
        assert heard.output.strip() == b"500001"
