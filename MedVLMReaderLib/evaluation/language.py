"""Words against words, as the papers compare them: BLEU, ROUGE, METEOR and BERTScore of each text, from 0 to 1.

M3D and Med3DVLM score every text by itself and average: BLEU of single words with sacrebleu's own tokens, the F measure
of ROUGE-1, METEOR with WordNet's synonyms, the F measure of BERTScore. Nothing is fetched: WordNet and BERTScore's
model are folders of this machine, and a measure without its folder is left out with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from MedVLMReaderLib import ReaderError

WORDNET = Path("/usr/share/wordnet")
"""Where Debian's wordnet-base puts it."""

Scores = dict[str, list[float]]


def scores(
    answers: Sequence[str], references: Sequence[str], *, wordnet: Path = WORDNET, bert: Path | None = None
) -> tuple[Scores, dict[str, str]]:
    """Of each measure a score for every text; of each measure that is left out, why."""
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers with {len(references)} references")
    found: Scores = {"bleu": bleu(answers, references), "bleu4": bleu(answers, references, 4)}
    found |= rouge(answers, references)
    without: dict[str, str] = {}
    if (wordnet / "data.noun").is_file():
        found["meteor"] = meteor(answers, references, wordnet)
    else:
        without["meteor"] = f"no WordNet in '{wordnet}'; install Debian's wordnet-base or name its folder"
    if bert is None:
        without["bertscore"] = "no folder of a BERT-like model was named"
    else:
        found["bertscore"] = bert_score(answers, references, bert)
    return found, without


def bleu(answers: Sequence[str], references: Sequence[str], longest: int = 1) -> list[float]:
    """BLEU of single words, as M3D publishes it, or of up to so many words together, as MS-VLM does."""
    from sacrebleu.metrics.bleu import BLEU

    measure = BLEU(max_ngram_order=longest, effective_order=True)
    return [measure.sentence_score(a, [r]).score / 100 for a, r in zip(answers, references, strict=True)]


def rouge(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """F measures of ROUGE-1 (M3D, Med3DVLM) and of ROUGE-L (MS-VLM)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"])
    rows = [scorer.score(r, a) for a, r in zip(answers, references, strict=True)]
    return {name: [float(row[key].fmeasure) for row in rows] for name, key in (("rouge1", "rouge1"),
                                                                               ("rougel", "rougeL"))}  # fmt: skip


def meteor(answers: Sequence[str], references: Sequence[str], wordnet: Path) -> list[float]:
    """METEOR with Porter's stems and WordNet's synonyms."""
    from nltk.translate.meteor_score import single_meteor_score

    words = _wordnet(wordnet)
    pairs = zip(answers, references, strict=True)
    return [float(single_meteor_score(_words(r), _words(a), wordnet=words)) for a, r in pairs]


def _words(text: str) -> list[str]:
    import re

    return re.findall(r"\w+|[^\w\s]", text.lower())


def _wordnet(folder: Path) -> object:
    """nltk's reader of a folder of WordNet; synonyms need only its English part."""
    import io
    import warnings

    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))  # nltk opens nothing that lies elsewhere

    class Reader(WordNetCorpusReader):
        def open(self, file: str) -> object:
            if file != "lexnames" or (folder / file).is_file():
                return super().open(file)
            return io.StringIO("".join(f"{n:02} file{n} 1\n" for n in range(45)))  # Debian leaves these names out

        def map_wn(self, version: str = "wordnet") -> None:
            """Other languages' numbers, which are not asked for."""

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there are no other languages
            return Reader(str(folder), None)
    except (OSError, LookupError, ValueError) as error:
        raise ReaderError(f"WordNet in '{folder}' cannot be read ({error}). Install wordnet-base again.") from None


def bert_score(answers: Sequence[str], references: Sequence[str], folder: Path) -> list[float]:
    """F measure of BERTScore with the last layer of a local model. ReaderError where the folder has none."""
    import torch
    from bert_score import BERTScorer

    if not (folder / "config.json").is_file():
        raise ReaderError(f"'{folder}' has no config.json: it is no model's folder. Name one for BERTScore.")
    layers, longest = _sizes(folder)
    scorer = BERTScorer(model_type=str(folder), num_layers=layers, device="cpu", lang="en")
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, longest)
    with torch.no_grad():
        _, _, f = scorer.score([answer or " " for answer in answers], list(references))
    return [float(x) for x in f]


def _sizes(folder: Path) -> tuple[int, int]:
    """Layers and longest text of BERT or DistilBERT."""
    import json

    config = json.loads((folder / "config.json").read_text())
    return int(config.get("num_hidden_layers") or config["n_layers"]), int(config["max_position_embeddings"])
