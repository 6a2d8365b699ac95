"""A thousand patients with odd names: what is exported is theirs, or is refused; it is never anybody else's."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.export.identity import ALWAYS, check_same, header, identity_of, unvalidated, written
from Testing.made_scans import plain_header, put_pixels

SETS = {  # character set: letters that it has
    "": "abcXYZ019 -'.", "ISO_IR 100": "äöüßéñÅ", "ISO_IR 101": "łńąŠž", "ISO_IR 144": "Люксембург",
    "ISO_IR 126": "Διονυσ",
    "ISO_IR 127": "قباني", "ISO_IR 138": "שרוןדבה", "ISO_IR 166": "ก้า", "ISO_IR 192": "王小東Æ\U0001f600ñ",
    "GB18030": "王小东",
    "ISO_IR 13": "ﾔﾏﾀﾞ", "ISO 2022 IR 6\\ISO 2022 IR 87": "山田太郎", "ISO 2022 IR 6\\ISO 2022 IR 149": "김희중",
}  # fmt: skip


def made(rng: random.Random) -> tuple[Dataset, str]:
    """A header of a made-up patient, and what is odd about it."""
    declared = rng.choice(list(SETS))
    letters = SETS[declared] + SETS[""] * (declared != "ISO_IR 13")

    def word(longest: int) -> str:
        return "".join(rng.choice(letters) for _ in range(rng.randint(1, longest))).strip() or "x"

    one = plain_header("1.2.3", StudyInstanceUID="1.2.3.4", FrameOfReferenceUID="1.2.5")
    if declared:
        one.SpecificCharacterSet = declared.split("\\")
    long = rng.choice((8, 8, 30, 120))
    one.PatientName = "^".join(word(long) for _ in range(rng.randint(1, 5))) + rng.choice(("", "=" + word(9)))
    one.PatientID = rng.choice((f"{rng.getrandbits(40):x}", f" {rng.getrandbits(20)} ", word(long), word(long)))
    one.PatientBirthDate = rng.choice(("19500230", "19500101", "", "1950.01.01"))
    one.PatientSex = rng.choice(("M", "F", "O", "", "W"))
    one.PatientComments = word(200)
    one.StudyDescription, one.AccessionNumber = word(long), word(20)
    item = Dataset()
    item.PatientID, item.TypeOfPatientID = word(12), "TEXT"
    one.OtherPatientIDsSequence = [item]
    for keyword in rng.sample(["PatientName", "PatientSex", "PatientBirthDate", "AccessionNumber"], rng.randint(0, 2)):
        del one[keyword]
    put_pixels(one, np.zeros((2, 2), np.int16))
    return one, declared


def saved(one: Dataset, path: Path) -> Path:
    with unvalidated():
        one.save_as(path, enforce_file_format=True)
    return path


def broken(content: bytes, rng: random.Random) -> bytes:
    """The file with another character set declared, of as many bytes."""
    other = rng.choice([b"ISO_IR 100", b"ISO_IR 192", b"ISO_IR 144", b"ISO_IR 999"])
    for old in (b"ISO_IR 100", b"ISO_IR 101", b"ISO_IR 144", b"ISO_IR 126", b"ISO_IR 192"):
        if old in content and rng.random() < 0.3:
            return content.replace(old, other, 1)
    return content


def exported(identity: Any) -> Dataset:
    """What stands for an exported object, with somebody else's name in it before the right one is put there."""
    out = plain_header("1.2.9", PatientName="Other^Somebody", PatientID="WRONG", StudyInstanceUID="9.9")
    put_pixels(out, np.zeros((2, 2), np.int16))
    return pydicom.dcmread(io.BytesIO(written(out, identity)))


def values(one: Dataset, keyword: str) -> str:
    return str(one.get(keyword) or "").strip()


def compared(out: Dataset, one: Dataset, seed: int) -> None:
    for keyword in (
        "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "AccessionNumber",
        "PatientComments", "StudyDescription",
    ):  # fmt: skip
        assert values(out, keyword) == values(one, keyword), (seed, keyword)
    assert str(out.OtherPatientIDsSequence[0].PatientID) == str(one.OtherPatientIDsSequence[0].PatientID)
    assert all(keyword in out for keyword in ALWAYS)


@pytest.mark.parametrize("block", range(10))
def test_what_is_exported_is_the_same_patients_or_refused(tmp_path, block, capfd, caplog):
    landed = refusals = 0
    for seed in range(block * 100, block * 100 + 100):
        rng = random.Random(seed)
        with unvalidated():
            one, _ = made(rng)
        path = saved(one, tmp_path / "one.dcm")
        whole = path.read_bytes()
        changed = broken(whole, rng)
        path.write_bytes(changed)
        try:
            source = header(path)
            check_same([source])
            out = exported(identity_of(source))
        except ReaderError:
            refusals += 1
            continue
        landed += 1
        if changed != whole:
            continue  # another character set that has these bytes, too: as every viewer shows the source
        with unvalidated():
            compared(out, one, seed)
    assert landed + refusals == 100
    assert landed >= 60
    assert "".join(capfd.readouterr()) + caplog.text == ""


@pytest.mark.parametrize(
    ("declared", "raw"), [(None, b"M\xfcller"), ("ISO_IR 192", b"M\xfcller"), ("ISO_IR 13 ", b"\x81\xff\xfd")]
)
def test_letters_outside_the_declared_set_are_refused_without_being_shown(tmp_path, declared, raw, caplog):
    one = plain_header("1.2.3", StudyInstanceUID="1.2.3.4", PatientName="x" * len(raw))
    if declared:
        one.SpecificCharacterSet = declared.strip()
    put_pixels(one, np.zeros((2, 2), np.int16))
    path = saved(one, tmp_path / "one.dcm")
    path.write_bytes(path.read_bytes().replace(b"x" * len(raw), raw))
    with pytest.raises(ReaderError, match="outside the character set") as error:
        header(path)
    assert "ller" not in str(error.value) + caplog.text


def test_nothing_of_another_patient_stays_in_an_object(tmp_path):
    one = plain_header("1.2.3", StudyInstanceUID="1.2.3.4", PatientID="RIGHT")
    del one.PatientName
    identity = identity_of(header(saved(one, tmp_path / "one.dcm")))
    out = exported(identity)
    assert (out.PatientID, values(out, "PatientName"), out.StudyInstanceUID) == ("RIGHT", "", "1.2.3.4")
