"""A pretrained model asked as it is: cosines, gaps and entailment as transformers says them; priors and abstention by hand; errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sslcli.data.statements import Pair, phrases, stated
from tests.conftest import TINY, rows, write_jsonl

ASK = ["evaluate", "task=text_classification", "task.head=zero_shot"]
LABELS = "data.labels=[cat,dog,ship]"
DESCRIBED = "data.descriptions={cat: a small furry pet that purrs, ship: a large boat on the sea}"
PHRASES = ["a small furry pet that purrs", "dog", "a large boat on the sea"]
STATED = [PHRASES[0], "This text is about dog.", PHRASES[2]]
CONTENT_FREE = ["N/A", "", "[MASK]"]


@pytest.fixture
def test(tmp_path: Path) -> str:
    return f"data.test={write_jsonl(tmp_path / 'test.jsonl', rows(27, seed=4))}"


@pytest.fixture
def lm(ssl, corpus: Path) -> str:
    done = ssl("pretrain", "objective=masked_lm", f"data.train={corpus}", *TINY, "trainer.steps=30", "optimizer.lr=3e-3", "run.dir=lm")
    assert done.code == 0, done.err
    return "lm"


@pytest.fixture
def nli(words, tmp_path: Path) -> Path:
    """A tiny model that speaks of entailment, with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    names = dict(enumerate(["contradiction", "neutral", "ENTAILMENT"]))
    config = BertConfig(vocab_size=words[False].size, initializer_range=0.5, id2label=names, **sizes)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "nli")
    words[False].save(tmp_path / "nli")
    told = tmp_path / "nli" / "tokenizer_config.json"  # as BERT's own tokenizers say it
    told.write_text(json.dumps(json.loads(told.read_text()) | {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}))
    return tmp_path / "nli"


def said(folder: str) -> tuple[list[dict], np.ndarray]:
    lines = [json.loads(x) for x in Path(folder, "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return lines, np.array([list(line["probabilities"].values()) for line in lines])


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def calibrated(logits: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Zhao et al. 2021: W = diag(p_cf)^-1, q = W p, brought to one."""
    q = softmax(logits) @ np.linalg.inv(np.diag(softmax(empty).mean(0)))
    return q / q.sum(-1, keepdims=True)


def mean_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """One text at a time, as sentence encoders are read."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    return np.stack([(v / v.norm()).numpy() for v in found]).astype(float)


@pytest.mark.parametrize("prior", ["none", "contextual", "batch"])
def test_a_sentence_encoder_takes_the_nearest_description(ssl, minilm: Path, test: str, prior: str) -> None:
    done = ssl(*ASK, f"from={minilm}", test, LABELS, DESCRIBED, f"task.prior={prior}", "out=asked")
    assert done.code == 0, done.err
    lines, found = said("asked")
    wanted = mean_vectors(minilm, STATED).T
    logits = mean_vectors(minilm, [line["input"] for line in lines]) @ wanted / 0.05
    empty = mean_vectors(minilm, CONTENT_FREE) @ wanted / 0.05
    by_hand = {"none": softmax(logits), "contextual": calibrated(logits, empty), "batch": calibrated(logits, np.log(softmax(logits)))}
    assert found == pytest.approx(by_hand[prior], abs=1e-4)
    assert [line["prediction"] for line in lines] == [["cat", "dog", "ship"][i] for i in by_hand[prior].argmax(1)]
    assert done.result["test"]["accuracy"] > 0.9
    receipt = json.loads(Path("asked/receipts.json").read_text())["untrained"]
    assert receipt["by"] == "embedding" and list(receipt["read"].values()) == STATED
    assert {"config.yaml", "metrics.json", "report.html", "data.json"} <= {p.name for p in Path("asked").iterdir()}


def test_a_masked_model_fills_the_gap(ssl, lm: str, test: str) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    template = "task.template={text} It is about a [MASK]."
    done = ssl(*ASK, "from=lm", test, LABELS, template, "task.words={cat: small cat, dog: big dog, ship: grey}", "out=asked")
    assert done.code == 0, done.err
    lines, found = said("asked")
    model, tokenizer = AutoModelForMaskedLM.from_pretrained("lm/model").eval(), AutoTokenizer.from_pretrained("lm/model")
    words = [tokenizer(w, add_special_tokens=False)["input_ids"] for w in ("small cat", "big dog", "grey")]

    def logits(text: str, place: int) -> list[float]:
        coded = tokenizer(f"{text} It is about a [MASK].", return_tensors="pt")
        gaps = [i for i, token in enumerate(coded["input_ids"][0].tolist()) if token == tokenizer.mask_token_id]
        with torch.no_grad():
            scores = model(**coded).logits[0, gaps[place]]
        return [float(scores[ids].mean()) for ids in words]

    empty = np.array([logits(text, -1) for text in CONTENT_FREE])
    by_hand = calibrated(np.array([logits(line["input"], 0) for line in lines]), empty)
    assert found == pytest.approx(by_hand, abs=1e-4)
    assert json.loads(Path("asked/receipts.json").read_text())["untrained"]["by"] == "cloze"


@pytest.mark.parametrize("hypothesis", [None, "It is about {label}!"])
def test_a_model_of_inference_is_asked_for_each_label(ssl, nli: Path, test: str, hypothesis: str | None) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    more = [] if hypothesis is None else [f"task.hypothesis={hypothesis}"]
    done = ssl(*ASK, f"from={nli}", test, LABELS, DESCRIBED, "data.max_length=48", *more, "out=asked")
    assert done.code == 0, done.err
    lines, found = said("asked")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(nli).eval(), AutoTokenizer.from_pretrained(nli)
    sentences = [(hypothesis or "This text is about {label}.").replace("{label}", phrase) for phrase in PHRASES]
    room = 48 - 3 - max(len(tokenizer(s, add_special_tokens=False)["input_ids"]) for s in sentences)

    def logits(text: str) -> list[float]:
        premise = tokenizer(text, add_special_tokens=False)["input_ids"][:room]
        scores = []
        for sentence in sentences:
            statement = tokenizer(sentence, add_special_tokens=False)["input_ids"]
            ids = [tokenizer.cls_token_id, *premise, tokenizer.sep_token_id, *statement, tokenizer.sep_token_id]
            types = [0] * (len(premise) + 2) + [1] * (len(statement) + 1)
            with torch.no_grad():
                scores.append(float(model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0, 2]))
        return scores

    by_hand = calibrated(np.array([logits(line["input"]) for line in lines]), np.array([logits(text) for text in CONTENT_FREE]))
    assert found == pytest.approx(by_hand, abs=1e-4)
    assert json.loads(Path("asked/receipts.json").read_text())["untrained"]["by"] == "nli"


def test_the_least_certain_texts_are_left_to_people(ssl, minilm: Path, test: str) -> None:
    done = ssl(*ASK, f"from={minilm}", test, LABELS, "task.abstain=0.2", "out=asked")
    assert done.code == 0, done.err
    lines, found = said("asked")
    sure, left = found.max(1), np.array([line["abstained"] for line in lines])
    assert left.sum() == 5 and sure[left].max() < sure[~left].min(), "a fifth of 27, rounded down"
    wrong = np.array([line["prediction"] != line["gold"] for line in lines])
    scores = done.result["test"]
    assert scores["abstained"] == pytest.approx(5 / 27) and scores["error_on_answered"] == pytest.approx(wrong[~left].mean())


def test_chinese_labels_are_asked_in_chinese(ssl, minilm: Path, tmp_path: Path) -> None:
    assert stated(["体育"], None) == ["这段文字的内容是体育。"] and stated(["sports"], None) == ["This text is about sports."]
    texts = [{"text": "这是一篇关于体育的文章", "label": "体育"}, {"text": "这是一篇关于天文的文章", "label": "天文"}]
    test = write_jsonl(tmp_path / "zh.jsonl", texts)
    done = ssl(*ASK, f"from={minilm}", f"data.test={test}", "data.labels=[体育,天文]", "data.descriptions=[体育比赛, 天文学]", "out=asked")
    assert done.code == 0 and list(said("asked")[0][0]["probabilities"]) == ["体育", "天文"], done.err
    read = json.loads(Path("asked/receipts.json").read_text(encoding="utf-8"))["untrained"]["read"]
    assert read == {"体育": "体育比赛", "天文": "天文学"}, "in the order of the labels"


def test_names_and_pairs(words) -> None:
    assert phrases(["card_arrival", "1"], {1: "one"}) == phrases(["card_arrival", "1"], ["card arrival", "one"]) == ["card arrival", "one"]
    tokenizer = words[False]
    ids, types = Pair(tokenizer).row(
        *(np.array(tokenizer.hf(t, add_special_tokens=False)["input_ids"]) for t in ("the cat", "a small dog"))
    )
    whole = tokenizer.hf("the cat", "a small dog")
    assert ids.tolist() == whole["input_ids"] and (types is None or types.tolist() == whole["token_type_ids"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["from=MINILM"], "data.labels: missing"),
        ([LABELS], "from: missing; name the model"),
        (["from=MINILM", LABELS, "run=lm"], "run and from (or task) are both given"),
        (["from=MINILM", "data.labels=[cat,dog]"], "the label ship is not in data.labels"),
        (["from=MINILM", LABELS, "data.descriptions={bird: it sings}"], "data.descriptions.bird: no such label"),
        (["from=MINILM", LABELS, "data.descriptions=[pet, puppy]"], "data.descriptions: 2 of them for 3 labels"),
        (["from=MINILM", LABELS, "data.descriptions={cat: pet, dog: pet}"], "labels cat and dog: both read pet"),
        (["from=MINILM", LABELS, "task.by=nli"], "task: by=nli: this model does not say entailment"),
        (["from=MINILM", LABELS, "task.by=cloze"], "task: by=cloze: this model has no language model's head"),
        (["from=MINILM", LABELS, "task.head=linear"], "task: head=linear: has to be trained first"),
        (["from=MINILM", LABELS, "task.hypothesis=about it"], "hypothesis=about it: holds {label} 0 times"),
        (["from=MINILM", LABELS, "task.words={cat: pet, dog: pup, ship: boat}"], "words: by=embedding reads none"),
        (["from=MINILM", LABELS, "task.abstain=1.5"], "task.abstain=1.5: "),
        (["from=MINILM", LABELS, "data.test=null"], "data.test: missing"),
    ],
)
def test_what_cannot_be_asked_is_one_line(ssl, minilm: Path, test: str, overrides: list[str], told: str) -> None:
    done = ssl(*ASK, test, *[x.replace("MINILM", str(minilm)) for x in overrides], "out=asked")
    assert done.code == 2 and told in done.err and done.err.count("error:") == (10 if "checked 27 records" in done.err else 1), done.err
    assert not Path("asked").exists(), "nothing half made"


def test_it_is_not_for_training(ssl, labelled: Path, minilm: Path) -> None:
    done = ssl("finetune", f"from={minilm}", "task.head=zero_shot", f"data.train={labelled}", "run.dir=run")
    assert done.code == 2 and "learns nothing from labels" in done.err and not Path("run").exists(), done.err
    done = ssl("evaluate", "from=elsewhere/nothing", "task=token_classification", "data.test=x", "out=asked")
    assert done.code == 2 and done.err.count("error:") == 1, done.err


def test_similarity_of_texts_needs_no_training(ssl, minilm: Path, tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    texts = [row["text"] for row in rows(12)]
    pairs = [{"text_a": a, "text_b": b, "score": float(i % 5)} for i, (a, b) in enumerate(zip(texts[:6], texts[6:], strict=True))]
    test = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    done = ssl("evaluate", "task=text_similarity", f"from={minilm}", f"data.test={test}", "out=asked")
    assert done.code == 0, done.err
    vectors = mean_vectors(minilm, texts)
    cosines = (vectors[:6] * vectors[6:]).sum(1)
    found = [json.loads(x)["prediction"] for x in Path("asked/predictions.jsonl").read_text().splitlines()]
    assert found == pytest.approx(cosines.tolist(), abs=1e-4)
    assert done.result["test"]["spearman"] == pytest.approx(spearmanr(cosines, [p["score"] for p in pairs]).statistic, abs=1e-6)


def test_passages_are_found_without_training(ssl, minilm: Path, tmp_path: Path) -> None:
    passages = [{"id": str(i), "text": row["text"]} for i, row in enumerate(rows(9))]
    queries = [{"query": "a pet that purrs by the fire", "positives": ["2"]}, {"query": "a boat in winter weather", "positives": ["8"]}]
    gallery, test = write_jsonl(tmp_path / "passages.jsonl", passages), write_jsonl(tmp_path / "queries.jsonl", queries)
    done = ssl("evaluate", "task=text_retrieval", f"from={minilm}", f"data.test={test}", f"data.gallery={gallery}", "out=asked")
    assert done.code == 0 and done.result["test"]["recall@1"] == 1.0, done.err
    again = ssl("evaluate", "run=asked")
    assert again.code == 2 and "is an evaluation, which keeps no model" in again.err and again.err.count("error:") == 1, again.err
