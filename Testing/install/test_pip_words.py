"""What pip prints, understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from MedVLMReaderLib.install.pip_words import OFFLINE, TROUBLES, PipWords, trouble, without_passwords

PRINTED = """\
Collecting torch>=2.10
  Downloading torch-2.13.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl (191.8 MB)
Collecting huggingface_hub<3,>=2.0
  Using cached huggingface_hub-2.4.0-py3-none-any.whl (900 kB)
Processing /wheels/python_gdcm-3.2.6-cp312-cp312-win_amd64.whl
Requirement already satisfied: numpy>=2.0 in ./site-packages (2.4.6)
Installing collected packages: torch, huggingface_hub, python-gdcm
Successfully installed huggingface_hub-2.4.0 python-gdcm-3.2.6 torch-2.13.0+cpu
"""


def test_progress_counts_what_has_come_and_never_goes_back() -> None:
    words = PipWords({"torch": 191_800_000, "huggingface-hub": 900_000, "python-gdcm": 13_300_000})
    seen = []
    for line in PRINTED.splitlines():
        words.take(line)
        seen.append((words.progress[0], words.text))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[1] == (0, "Fetching torch (1 of 3, 192 MB)")
    assert seen[3] == (191_800_000, "Fetching huggingface-hub (2 of 3, 1 MB)")
    assert words.progress == (206_000_000, 206_000_000)
    assert words.text == "Installing 3 packages"


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "The disk is full"),
        ("ERROR: Could not install packages due to an OSError: [WinError 112] There is not enough space on the disk",
         "full"),
        ("WARNING: Retrying (Retry(total=1)) after connection broken by 'ProxyError('Cannot connect to proxy.', "
         "OSError('Tunnel connection failed: 407 Proxy Authentication Required'))'", "The proxy refuses"),
        ("WARNING: Retrying after connection broken by 'NewConnectionError(...: Failed to establish a new connection: "
         "[Errno 111] Connection refused')'\nERROR: No matching distribution found for torch", "cannot be reached"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed'))",
         "PIP_CERT"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "arrived damaged"),
        ("ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: 'x.pyd'", "another"),
        ("ERROR: ResolutionImpossible: for help visit", "separate environment"),
        ("error: externally-managed-environment", "belongs to the system"),
        ("ERROR: No matching distribution found for torch>=2.10", "no package torch"),
        ("Traceback\nValueError: odd https://me:secret@host/", "ValueError: odd https://…@host/"),
        ("", "nothing was said"),
    ],
)  # fmt: skip
def test_each_trouble_has_words_that_say_what_to_do(printed: str, told: str) -> None:
    said = trouble(printed)
    assert told in said
    assert "secret" not in said


def test_what_a_folder_lacks_is_named_with_the_folder() -> None:
    said = trouble("ERROR: No matching distribution found for monai>=1.5", Path("/wheels"))
    assert said.startswith("'/wheels' has no wheel of monai")


def test_passwords_in_addresses_are_left_out_and_the_rest_stays() -> None:
    text = "Looking in indexes: https://me:s3cret@host/simple, https://other/simple\nuser@host said"
    assert without_passwords("Bearer hf_abcdefgh123 refused") == "Bearer hf_… refused"
    assert without_passwords(text) == "Looking in indexes: https://…@host/simple, https://other/simple\nuser@host said"


def test_every_trouble_stands_on_the_page() -> None:
    page = Path(__file__).parents[2].joinpath("docs/setting-up.md").read_text()
    assert [told for told in (OFFLINE, *(told for _, told in TROUBLES)) if f"- {told}\n" not in page] == []
