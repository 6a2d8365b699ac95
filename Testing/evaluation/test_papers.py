"""The papers' protocols on small examples whose figures can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MedVLMReaderLib import ReaderError
from MedVLMReaderLib.cases import Case
from MedVLMReaderLib.evaluation import language
from MedVLMReaderLib.evaluation.papers import Answers, answered, labels, masks, questions, reports, retrieval

NONE = Path("nowhere")


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ---- Retrieval ------------------------------------------------------------------------------------------------------


def test_recall_counts_the_right_one_among_the_first_in_each_pool_both_ways() -> None:
    random = np.random.default_rng(0)
    texts = unit(random.normal(size=(12, 8)))
    images = texts.copy()
    images[[10, 11]] = images[[11, 10]]  # two scans were exchanged
    found = retrieval(images, texts, pools=(10, 100))
    assert set(found) == {"pool_10", "pool_12"}
    assert found["pool_10"]["text_of_image"]["recall_1"]["value"] == 1
    assert found["pool_12"]["image_of_text"]["recall_1"]["value"] == pytest.approx(10 / 12, abs=1e-4)


def test_equals_do_not_count_as_found() -> None:
    same = np.ones((20, 4)) / 2
    found = retrieval(same, same, pools=(20,))["pool_20"]["text_of_image"]
    assert [found[f"recall_{k}"]["value"] for k in (1, 5, 10)] == [0, 0, 0]


def test_one_pair_is_no_retrieval() -> None:
    with pytest.raises(ReaderError, match="at least two pairs"):
        retrieval(np.ones((1, 4)), np.ones((1, 4)))


# ---- Words ----------------------------------------------------------------------------------------------------------


def test_equal_texts_score_one_and_foreign_ones_nothing() -> None:
    found, without = language.scores(["a nodule on the right", "qqq"], ["a nodule on the right", "clear"], wordnet=NONE)
    assert set(found) == {"bleu", "bleu4", "rouge1", "rougel"}
    for values in found.values():
        assert values[0] == pytest.approx(1)
        assert values[1] == pytest.approx(0, abs=1e-6)
    assert "wordnet-base" in without["meteor"]
    assert "no folder" in without["bertscore"]


@pytest.mark.skipif(not (language.WORDNET / "data.noun").is_file(), reason="Debian's wordnet-base is not installed")
def test_meteor_knows_stems_and_synonyms() -> None:
    same, stem, synonym, other = language.meteor(
        ["two stones seen", "two stone seen", "two rocks seen", "two qqq seen"], ["two stones seen"] * 4,
        language.WORDNET,
    )  # fmt: skip
    assert same > 0.95
    assert stem > other
    assert synonym > other


def test_bert_score_of_a_local_model_needs_no_network(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "stone", "nodule", "clear"]
    transformers.BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(tmp_path)
    config = transformers.BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=16)  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path)
    same, other = language.bert_score(["a stone", "a stone"], ["a stone", "clear nodule"], tmp_path)
    assert same == pytest.approx(1, abs=1e-4)
    assert other < same
    with pytest.raises(ReaderError, match=r"no config\.json"):
        language.bert_score(["a"], ["a"], tmp_path / "none")


# ---- Questions and reports ------------------------------------------------------------------------------------------


def closed(volume: str, kind: str, answer: str = "spleen") -> Case:
    return Case(volume, question="Which?", answer=answer, choices=("liver", "spleen"), type=kind)


def test_the_published_rule_lets_pass_what_names_every_letter_and_the_strict_one_does_not() -> None:
    cases = [closed("1", "organ"), closed("1", "plane"), closed("2", "organ"), closed("2", "size")]
    found = questions(cases, ["B. spleen", "A. or B.", "A. liver", "spleen"], wordnet=NONE)["closed"]
    assert found["published_rule"]["all"]["value"] == 0.5
    assert found["one_choice_only"]["all"]["value"] == 0.5
    assert found["published_rule"]["plane"]["value"] == 1
    assert found["one_choice_only"]["plane"]["value"] == 0
    assert found["one_choice_only"]["size"]["value"] == 1
    assert list(found["published_rule"]) == ["all", "plane", "organ", "size"]


def test_intervals_resample_volumes() -> None:
    """A hundred questions about two volumes tell no more than two do."""
    cases = [closed(str(n % 2), "organ") for n in range(100)]
    found = questions(cases, ["B." if n % 2 else "A." for n in range(100)], wordnet=NONE)["closed"]["published_rule"]
    assert found["all"]["value"] == 0.5
    assert (found["all"]["low"], found["all"]["high"], found["all"]["n"]) == (0, 1, 100)


def test_open_questions_and_reports_are_scored_by_their_words() -> None:
    found = questions([Case("1", question="What?", answer="a stone")], ["a stone"], wordnet=NONE)
    assert found["open"]["bleu"]["value"] == 1
    assert "closed" not in found
    assert reports([Case("1", "Clear.")], ["Clear."], wordnet=NONE)["rouge1"]["value"] == 1


def test_answers_are_kept_and_not_asked_for_again_after_a_kill(tmp_path: Path) -> None:
    cases, asked = [closed("1", "organ"), Case("1", "A report.")], []

    def ask(case: Case) -> str:
        asked.append(case)
        return f"answer {len(asked)}"

    path = tmp_path / "answers.jsonl"
    first = answered(cases, Answers(path), ask, lambda n: None)
    with path.open("a") as file:
        file.write('{"volume": "3", "quest')  # killed while it wrote
    assert answered(cases, Answers(path), ask, lambda n: None) == first
    assert len(asked) == 2
    assert len(path.read_text().splitlines()) == 2
    path.write_text("[]\n")
    with pytest.raises(ReaderError, match="something else than answers"):
        Answers(path)


# ---- Masks and labels -----------------------------------------------------------------------------------------------


def test_dice_and_distance_are_of_the_classes_that_are_there_in_millimetres() -> None:
    true = np.zeros((6, 9, 9), np.uint8)
    true[1:3, 2:5, 2:5] = 1
    found = np.roll(true, 1, axis=0)
    shown = masks([(found, true, (5.0, 1.0, 1.0)), (true, true, (5.0, 1.0, 1.0))], ["background", "liver", "stone"])
    assert shown["dice"]["liver"]["value"] == pytest.approx((0.5 + 1) / 2)
    assert shown["dice"]["stone"]["n"] == 0
    assert shown["hausdorff_95_mm"]["liver"]["value"] == pytest.approx(2.5)
    with pytest.raises(ReaderError, match="cannot be compared"):
        masks([(found[1:], true, (1, 1, 1))], ["background", "liver"])


def test_labels_have_accuracy_and_an_area_where_both_kinds_are_there() -> None:
    scores = np.array([[0.9, 0.2], [0.8, 0.1], [0.3, 0.4], [0.6, 0.3]])
    truth = np.array([[1, 0], [1, 0], [0, 0], [0, 0]])
    shown = labels(scores, truth, ["stone", "nodule"])
    assert shown["accuracy"]["stone"]["value"] == 0.75
    assert shown["auc"]["stone"]["value"] == 1
    assert "nodule" not in shown["auc"]
