"""A real DICOM server on this machine alone, for tests: Debian's Orthanc with its DICOMweb plugin, on a free port."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SECONDS = 30


def missing() -> str:
    """Why there is no server here; "" where there is."""
    if not (shutil.which("Orthanc") or Path("/usr/sbin/Orthanc").exists()):
        return "Orthanc is not installed (apt install orthanc)"
    return "" if PLUGIN.exists() else "Orthanc has no DICOMweb (apt install orthanc-dicomweb)"


@contextmanager
def server(folder: Path, files: Iterator[Path]) -> Iterator[str]:
    """The DICOMweb address of a server that holds the files."""
    with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as other:
        port, dicom = free.getsockname()[1], other.getsockname()[1]
    settings = {
        "HttpPort": port, "DicomPort": dicom, "DicomServerEnabled": False, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"), "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        _wait(port, running, folder / "log")
        for path in files:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/instances", path.read_bytes(), method="POST")
            urllib.request.urlopen(request, timeout=SECONDS).read()
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        running.terminate()
        running.wait(SECONDS)


def _wait(port: int, running: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and running.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/dicom-web/studies", timeout=2).read()
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"Orthanc did not start:\n{log.read_text()[-2000:]}")
