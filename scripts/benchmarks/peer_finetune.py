"""Peer: fine-tuning with the Transformers Trainer, in the way of its run_ner and run_glue examples. Arguments: one JSON object."""

import json
import sys
import tempfile
from pathlib import Path


def main(
    data: str, model: str, task: str, epochs: float, batch: int, lr: float, bf16: bool, seed: int, limit: int | None, warmup: int
) -> dict:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

    set_seed(seed)
    split = {s: _read(Path(data) / f"{s}.jsonl") for s in ("train", "test")}
    if limit:
        split["train"] = [split["train"][i] for i in np.random.default_rng(0).permutation(len(split["train"]))[:limit]]
    words = AutoTokenizer.from_pretrained(model)
    names = sorted({t for r in split["train"] for t in (r["tags"] if task == "ner" else [r["label"]])})
    prepare, network, collate = (_ner if task == "ner" else _classify)(words, names, model)
    sets = {s: Dataset.from_list(rows).map(prepare, batched=True, remove_columns=list(rows[0])) for s, rows in split.items()}
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=64,
        num_train_epochs=epochs,
        learning_rate=lr,
        warmup_steps=warmup,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=seed,
    )
    trainer = Trainer(network, arguments, collate, sets["train"])
    rate = trainer.train().metrics["train_samples_per_second"]
    if limit:
        return {"examples_per_second": rate}
    out = trainer.predict(sets["test"])
    guess, gold = out.predictions.argmax(-1), out.label_ids
    if task != "ner":
        return {"examples_per_second": rate, "score": float((guess == gold).mean())}
    from seqeval.metrics import f1_score

    said = [[names[x] for x, y in zip(a, b, strict=True) if y != -100] for a, b in zip(guess, gold, strict=True)]
    true = [[names[y] for y in b if y != -100] for b in gold]
    return {"examples_per_second": rate, "score": float(f1_score(true, said))}


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _classify(words, names, model):
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

    ids = {n: i for i, n in enumerate(names)}
    prepare = lambda rows: {**words(rows["text"], truncation=True, max_length=128), "labels": [ids[x] for x in rows["label"]]}  # noqa: E731
    return prepare, AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(names)), DataCollatorWithPadding(words)


def _ner(words, names, model):
    from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

    ids = {n: i for i, n in enumerate(names)}

    def prepare(rows):
        coded = words(rows["tokens"], is_split_into_words=True, truncation=True, max_length=512)
        labels = []
        for i, tags in enumerate(rows["tags"]):
            before, line = None, []
            for word in coded.word_ids(i):
                line.append(-100 if word is None or word == before else ids.get(tags[word], ids["O"]))
                before = word
            labels.append(line)
        return {**coded, "labels": labels}

    return prepare, AutoModelForTokenClassification.from_pretrained(model, num_labels=len(names)), DataCollatorForTokenClassification(words)


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
