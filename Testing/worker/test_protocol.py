"""What goes between client and worker: lines, arrays, readings; and what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.geometry import Grid
from MedVLMReaderLib.reading import Reading, Trace
from MedVLMReaderLib.volume import View
from MedVLMReaderLib.worker.protocol import (
    LONGEST,
    Broken,
    Lines,
    line,
    message,
    named,
    read_array,
    read_reading,
    view_from,
    view_plain,
    volume_from,
    volume_plain,
    write_array,
    write_reading,
    writing,
)
from Testing.made_scans import oblique_grid


def test_a_message_is_one_line_whatever_is_in_it():
    content = {"text": 'a "b"\n\u2028ü\x00<b>', "n": np.float32(0.5), "affine": np.eye(2)}
    sent = line(content)
    assert sent.count(b"\n") == 1
    assert sent.isascii()
    assert message(sent) == {"text": content["text"], "n": 0.5, "affine": [[1.0, 0.0], [0.0, 1.0]]}


@pytest.mark.parametrize("wrong", [b"hello", b"[1]", b"\xff\xfe", b"[" * 100_000, b"", b'{"a":'])
def test_what_is_no_message_is_told_from_one(wrong):
    with pytest.raises(Broken):
        message(wrong)


def test_a_line_has_a_longest_length_on_both_sides():
    with pytest.raises(ReaderError, match="Shorten it"):
        line({"question": "x" * LONGEST})
    lines = Lines()
    assert list(lines.take(b"x" * (LONGEST - 1) + b"\nrest")) == [b"x" * (LONGEST - 1)]
    with pytest.raises(Broken, match="a line of"):
        list(Lines().take(b"x" * LONGEST + b"\n"))
    with pytest.raises(Broken, match="a line of more"):
        list(Lines().take(b"x" * LONGEST))


def test_lines_come_out_however_they_were_cut():
    lines, text = Lines(), b'{"a":1}\n{"b":2}\n{"c"'
    assert [one for n in range(len(text)) for one in lines.take(text[n : n + 1])] == [b'{"a":1}', b'{"b":2}']
    assert lines.rest == b'{"c"'


@pytest.mark.parametrize("dtype", ["i2", ">i2", "u1", "f4", "f8", "?"])
def test_voxels_arrive_as_they_were_in_any_order_of_memory(tmp_path, dtype):
    values = (np.random.default_rng(0).random((5, 4, 3)) * 200).astype(dtype)
    for n, one in enumerate((values, np.asfortranarray(values), values[::-1, :, ::2])):
        write_array(tmp_path / f"{n}.npy", one)
        read = read_array(tmp_path / f"{n}.npy")
        assert read.dtype == one.dtype
        np.testing.assert_array_equal(read, one)


def test_a_large_array_is_written_in_pieces_and_never_over_another_file(tmp_path):
    values = np.zeros((12, 1024, 1024), np.int16)
    assert sum(1 for _ in writing(tmp_path / "a.npy", values)) == 6
    with pytest.raises(FileExistsError):
        next(writing(tmp_path / "a.npy", values))


def test_objects_are_neither_written_nor_read(tmp_path):
    with pytest.raises(ReaderError, match="Voxels of type object"):
        write_array(tmp_path / "a.npy", np.array([[["x"]]], object))
    np.save(tmp_path / "b.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "c.npy").write_bytes(pickle.dumps([1]))
    for name in ("b.npy", "c.npy"):
        with pytest.raises(Broken):
            read_array(tmp_path / name)


@pytest.mark.parametrize("name", ["../x.npy", "/etc/passwd", "x.txt", "a/b.npy", "", None, 3, "X.npy"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(Broken, match="no file name"):
        named(tmp_path, name)


def test_a_volume_keeps_its_place(tmp_path, oblique_ct):
    write_array(tmp_path / "v.npy", oblique_ct.values)
    read = volume_from(tmp_path, message(line(volume_plain(oblique_ct, "v.npy"))))
    np.testing.assert_array_equal(read.values, oblique_ct.values)
    np.testing.assert_array_equal(read.grid.affine, oblique_ct.grid.affine)
    assert (read.modality, read.source, read.key) == ("CT", "made", oblique_ct.key)
    with pytest.raises(Broken, match="no volume"):
        volume_from(tmp_path, {"file": "v.npy", "affine": [[1]], "modality": "", "source": "", "notes": []})


def test_a_view_keeps_its_numbers():
    view = View(400.0, 40.0, (1.0, 2.5, -3.0))
    assert view_from(message(line({"view": view_plain(view)}))["view"]) == view
    assert view_from(view_plain(None)) is None
    with pytest.raises(Broken, match="no view"):
        view_from({"window": "x"})


def test_a_reading_arrives_whole_and_leaves_nothing_behind(tmp_path):
    grid: Grid = oblique_grid((2, 3, 4), (5.0, 1.5, 2.0))
    weights = np.random.default_rng(0).random((2, 24)).astype(np.float16)
    trace = Trace("attention", ((0, 3), (4, 8)), weights, {"image_share": [0.5, 0.25]})
    sent = Reading("Why?", "The <b>.", True, (trace,), (grid,), "m", "r", notes=("n",))
    read = read_reading(tmp_path, write_reading(tmp_path, "reading-7", sent))
    assert (read.text, read.created, read.notes, read.traces[0].how) == (sent.text, sent.created, ("n",), trace.how)
    np.testing.assert_array_equal(read.traces[0].weights, weights)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(Broken, match=r"reading x\.json"):
        read_reading(tmp_path, "x.json")
