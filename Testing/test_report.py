"""The report: sections found in a text, edits that are kept, provenance, and what text, Markdown and PDF show of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.reading import Reading
from MedVLMReaderLib.report import BANNER, Report, Section, report_of, report_of_chat, sections_of
from MedVLMReaderLib.report_pdf import pdf
from MedVLMReaderLib.session import ChatSession, Turn
from MedVLMReaderLib.structured import StructuredFinding

STONE = "Stone of 7 mm in the right kidney."


def reading(text: str = f"Findings: {STONE} The liver is normal.\nImpression: Renal stone.", **fields) -> Reading:
    return Reading("Describe it.", text, True, (), (), "tiny", "r1", options={"precision": "int8"}, **fields)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Findings: a.\nImpression: b.", {"Findings": "a.", "Impression": "b."}),
        ("**FINDINGS:** a. IMPRESSION: b.", {"Findings": "a.", "Impression": "b."}),
        ("## Findings\n\n- a\n- b\n\n## Conclusion\nc", {"Findings": "- a\n- b", "Conclusion": "c"}),
        ("Dear colleague.\nFindings: a.", {"Remarks": "Dear colleague.", "Findings": "a."}),
        ("Compared with prior findings: stable.", {"Findings": "Compared with prior findings: stable."}),
        ("Findings: a.\r\nImpression:", {"Findings": "a.", "Impression": ""}),
        ("Findings: a\x00\x1b[31m\ud800.", {"Findings": "a[31m."}),
    ],
)  # fmt: skip
def test_sections_are_found_and_nothing_else_is_lost(text, found):
    assert {one.heading: one.text for one in sections_of(text)} == found


def test_an_edit_keeps_what_was_there_and_can_be_undone():
    report = report_of(reading())
    edited = report.edited("Impression", "No stone.").edited("Advice", "None.").edited("Findings", None)
    assert edited["Impression"] == "No stone."
    assert [one.heading for one in edited.sections] == ["Impression", "Advice"]
    assert [(one.before, one.after) for one in edited.edits] == [
        ("Renal stone.", "No stone."), (None, "None."), (f"{STONE} The liver is normal.", None),
    ]  # fmt: skip
    assert edited.undone().undone().undone() == report
    assert edited.edited("Advice", "None.") is edited
    assert "Edited by hand 3 times" in edited.text()


def test_a_kept_report_comes_back_whole(tmp_path):
    report = replace(report_of(reading()), listed=(StructuredFinding(STONE, "stone", "kidney", "right", 7.0),))
    report = report.edited("Impression", "Größe: 日本語 \U0001f9b4")
    report.save(tmp_path)
    assert Report.load(tmp_path) == report
    assert "not for clinical use" in (tmp_path / "report.json").read_text()


def test_an_edited_report_without_its_original_is_refused(tmp_path):
    report = report_of(reading()).edited("Impression", "No stone.")
    report.save(tmp_path)
    content = json.loads((tmp_path / "report.json").read_bytes())
    for missing in ({"original": []}, {"original": [{"heading": "Impression", "text": "Other."}]}):
        (tmp_path / "report.json").write_text(json.dumps({**content, **missing}))
        with pytest.raises(ReaderError, match="not with it"):
            Report.load(tmp_path)
    del content["original"]
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ReaderError, match="damaged or incomplete"):
        Report.load(tmp_path)


def test_an_edited_reading_needs_the_reading_that_the_model_wrote():
    edited = replace(reading("Findings: None."), options={"edited": True})
    with pytest.raises(ReaderError, match="what the model wrote is not with it"):
        report_of(edited)
    with pytest.raises(ReaderError, match="another model's"):
        report_of(edited, replace(reading(), revision="r2"))
    report = report_of(edited, reading())
    assert report["Findings"] == "None."
    assert report.original == report_of(reading()).original
    assert {one.heading for one in report.edits} == {"Findings", "Impression"}


@pytest.mark.parametrize("text", ["", "  \n", "...", "Findings:\nImpression:"])
def test_a_report_without_words_is_refused(text):
    with pytest.raises(ReaderError, match="no words"):
        report_of(reading(text))


def test_text_and_markdown_say_what_it_is_and_where_from_and_obey_nothing():
    report = report_of(reading("Findings: <b>*x*</b> [a](http://b) # c\nImpression: 1. d"))
    for text in (report.text(), report.markdown()):
        assert BANNER.lower() in text.lower()
        for said in ("tiny", "r1", "int8", "Nobody has signed", "Describe it."):
            assert said in text
    marked = report.markdown([("A\nline", "key-image-01.png")])
    assert r"\<b\>\*x\*\</b\> \[a\](http://b) \# c" in marked
    assert "1\\. d" in marked
    assert "![A line](key-image-01.png)" in marked


def test_markdown_has_the_history_of_edits_and_what_verification_said():
    rows = (StructuredFinding(STONE, supported=True), StructuredFinding("The liver is normal.", supported=False))
    report = replace(report_of(reading()), listed=rows).edited("Impression", "No *stone*.\nNone.").edited("Advice", "b")
    marked = report.markdown()
    assert "- Before: Renal stone.\n  - After: No \\*stone\\*.  \n    None." in marked
    assert "Before: (no such section)" in marked
    for text in (report.text(), marked, "".join(pages(pdf(report)))):
        assert "Verification" in text
        assert f"Supported by the image: {STONE}" in text
        assert "Not supported by the image: The liver is normal." in text
    assert "Verification" not in report_of(reading()).markdown()


def test_the_report_of_a_chat_is_its_last_answer_with_headings_and_the_rest_follows():
    turns = [Turn("Report?", reading()), Turn("Sure?", reading("Quite sure."))]
    report = report_of_chat(ChatSession(("key",), turns))
    assert report["Impression"] == "Renal stone."
    assert report.sections[-1] == Section("Questions and answers", "Sure?\nQuite sure.")
    assert report_of_chat(ChatSession(("key",), turns), 1)["Findings"] == "Quite sure."
    with pytest.raises(ReaderError, match="no answer 1"):
        report_of_chat(ChatSession(("key",)))


def test_a_finding_whose_sentence_was_edited_away_is_no_longer_listed():
    report = replace(report_of(reading()), listed=(StructuredFinding(STONE, "stone"),))
    assert len(report.findings) == 1
    assert report.edited("Findings", "Nothing.").findings == ()


def pages(content: bytes) -> list[str]:
    pdfium = pytest.importorskip("pypdfium2", reason="reads the PDF")
    document = pdfium.PdfDocument(content)
    return [page.get_textpage().get_text_range() for page in document]


def test_every_page_of_the_pdf_warns_and_the_same_report_is_the_same_file():
    long = report_of(reading("Findings: " + "The liver is normal. " * 400 + "\nImpression: Normal."))
    content = pdf(long, [("Liver.", np.zeros((48, 120, 3), np.uint8))])
    assert content == pdf(long, [("Liver.", np.zeros((48, 120, 3), np.uint8))])
    found = pages(content)
    assert len(found) > 2
    assert all(BANNER.upper() in page and "tiny, revision r1" in page for page in found)
    assert "Attention, not a finding" in found[-1]


def test_letters_of_any_script_are_in_the_pdf_or_named():
    said = "Größe µ ≥ 3, узел, όζος, 結節, ひ, 폐, &lt;b&gt; <b>, \U0001f9b4."
    text = "".join(pages(pdf(report_of(reading(f"Findings: {said}")).edited("Impression", "Ж\nж"))))
    text = "".join(text.split())
    for part in ("Größeµ≥3", "узел", "όζος", "&lt;b&gt;<b>", "Edits", "Before:(nosuchsection)"):
        assert part in text
    assert "\U0001f9b4" in text or "[U+1F9B4]" in text


def test_one_very_long_word_fits_the_pdf():
    assert pages(pdf(report_of(reading("Findings: " + "x" * 20000))))
