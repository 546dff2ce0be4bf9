"""Help for people. Static: it reads the first line of each YAML file and imports nothing heavy (a test holds it to that)."""

from pathlib import Path

OVERVIEW = """\
ssl: pretrain on what you have, fine-tune with the few labels you can afford, export something that runs.

usage: ssl <command> [key=value ...] [options]

commands
  pretrain     self-supervised, on an unlabelled corpus
  finetune     a task with labels, from a pretrained model or run
  evaluate     a finished run, on other data; or a pretrained model as it is
  curve        how many labels pretraining saved, measured
  export       a finished run, as hf, onnx or torch, checked against the trained model
  report       finished runs, as one HTML page; several are compared
  leaks        rows that stand in two parts of the data, such as test and train
  label-next   which unlabelled rows to label next, and what they may bring
  completion   shell completion: bash, zsh or fish

first steps (offline, on embedded text, minutes on a laptop)
  ssl pretrain run.dir=runs/first
  ssl finetune from=runs/first run.dir=runs/task
  ssl evaluate run=runs/task
  ssl export run=runs/task format=onnx out=dist/task

ssl <command> --help lists its keys, choices and examples."""

OPTIONS = """\
options
  --dry-run          check everything (configuration, files, columns, labels, memory, disk), take two real steps, keep nothing
  --preview FILE     draw pictures beside the views that training would make of them (PNG), and stop
  --cfg job          print the composed configuration and stop
  -m, --multirun     sweep: key=a,b runs every combination, each in a process of its own, and ends in one table
  --config-dir DIR   your own YAML files, as DIR/experiment/mine.yaml (then experiment=mine)
  -q, -v             less, more on the screen
  --debug            the traceback of an error"""

VERBS = {
    "pretrain": (
        "ssl pretrain: one self-supervised objective over an unlabelled corpus. Bare, it learns from the documentation on this machine.",
        ("data", "tokenizer", "augment", "model", "objective", "adversarial", "optimizer", "trainer", "experiment"),
        """\
  data.train=corpus/*.txt      your text: a file, glob, folder, hf:<name>, or - (.txt .jsonl .csv .tsv .parquet, also .gz .zst)
  trainer.steps=20000          or trainer.epochs=3, or trainer.time_limit=2h
  objective=masked_lm          what to learn by; span_contrastive, the default, learns what documents are about; simcse, tsdae: sentences
  objective=auto budget=30m    short pilots on your own data choose it; objective.candidates=[simclr,moco] says among which
  data.pairs=sts.jsonl         pairs of texts with scores to watch beside training (their correlation chooses the checkpoint)
  model=bert_small             which network, from scratch; from=<folder or hub name> continues a pretrained one
  run.dir=runs/lm              where everything goes; add resume=auto to continue exactly where it stopped""",
        """\
  ssl pretrain objective=masked_lm model=bert_tiny data.train='corpus/*.txt' trainer.steps=2000 run.dir=runs/lm
  ssl pretrain objective=causal_lm model=gpt_mini tokenizer=bpe data.train='corpus/**/*.jsonl.gz' trainer.steps=20000
  ssl pretrain from=bert-base-cased data.train=own.txt optimizer.lr=5e-5
  ssl pretrain objective=simcse from=bert-base-uncased data.train=sentences.txt data.pairs=sts.jsonl
  ssl pretrain objective=simclr model=resnet18 data.train=photos/ run.dir=runs/photos     # pictures; --preview views.png shows the views
  ssl pretrain run.dir=runs/lm resume=auto""",
    ),
    "finetune": (
        "ssl finetune: one task over labelled examples, from a pretraining run, a model folder or a hub name.",
        ("data", "tokenizer", "augment", "model", "task", "peft", "adversarial", "optimizer", "trainer", "compare", "experiment"),
        """\
  from=runs/lm                 the model to start from; init=random takes its architecture untrained, for comparison
  data.train=train.csv         labelled data; also data.valid, data.test (without data.valid a part of train is held out)
  data.columns.label=topic     which column is what, where guessing is wrong (text, label, tokens, tags, text_a, text_b, score,
                               positives, negative; of a gallery: id, passage)
  pooling=cls                  how a text's states become one vector, where not as the model has it: mean, cls, max, last, first_last
  data.shots=8                 only so many labels of each class
  trainer.seeds=1              one run where several are usual: below 1,000 labels there are 3, with their mean and its interval
  -m +compare=heads            methods side by side, three seeds each: score, difference to the first, trainable share, memory, time
  optimizer.lr=1e-4            the peak learning rate; left out, it follows from the model's width""",
        """\
  ssl finetune from=runs/lm data.train=train.csv data.test=test.csv run.dir=runs/topic
  ssl finetune task=token_classification from=bert-base-cased data.train=train.conll data.valid=dev.conll data.test=test.conll
  ssl finetune task=text_similarity from=runs/lm data.train=pairs.csv data.test=sts.csv       # task.loss=none: the model as it is
  ssl finetune task=text_retrieval from=runs/lm data.train=queries.jsonl data.gallery=passages.jsonl
  ssl finetune task=image_classification from=runs/photos data.train=train/ data.test=test/     # a folder a class
  ssl finetune -m optimizer.lr=1e-5,3e-5,5e-5 seed=0,1 from=runs/lm data.train=train.csv
  ssl finetune -m +compare=heads from=runs/lm data.train=train.csv data.test=test.csv data.shots=8""",
    ),
    "curve": (
        "ssl curve: how many labels pretraining saved. Fine-tunings with few to all labels, from a pretraining run and from its start.",
        ("task",),
        """\
  from=runs/lm                 the pretraining run (or a pretrained model); its start is what it continued from, or untrained weights
  data.train=train.csv         labelled data, and data.test, the same for all; all keys of ssl finetune are there
  curve.labels=[8,16,32,all]   labels of each class, nested; tables and sentences count them in all
  curve.seeds=3                runs of each
  curve.at=100                 read where the untouched start has so many labels in all; left out, the most
  curve.unlabelled=pretrained  objective= (as label_propagation) is for the pretrained start alone: what all unlabelled rows give together
  curve.label_price=0.5        says the saving in money
  sweep.parallel=4             so many runs at a time; sweep.dir=<folder> names where they go. The same command again goes on""",
        """\
  ssl curve from=runs/lm data.train=train.csv data.test=test.csv
  ssl curve from=runs/photos data.train=train/ data.test=test/ curve.labels=[5,10,20,50] curve.label_price=0.1""",
    ),
    "evaluate": (
        "ssl evaluate: a finished run on other data, with the run's own settings; or a pretrained model as it is.",
        (),
        """\
  run=runs/topic               the run
  data.test=other.csv          what to score it on; left out, the run's own test (or held-out) data
  data.columns.text=body       which column is what, where guessing is wrong
  robustness=true              clean against disturbed and attacked input, in one table (attack.radii=[0.01,0.03], attack.steps=5)
  out=runs/topic-other         where the scores and predictions.jsonl go; left out, a folder beside the run
  from=<folder or hub name>    instead of run=: a pretrained model as it is, without training, on the task that task= names:
                               text_classification with task.head=zero_shot and data.labels, text_similarity, text_retrieval
  data.descriptions={a: ...}   zero-shot: what a label means, where its name does not say it; or a list, in the order of data.labels
  task.by=nli                  zero-shot: embedding, cloze or nli; left out, what the model is made for
  task.abstain=0.1             zero-shot: the tenth of the texts that is least certain is left to people""",
        """\
  ssl evaluate run=runs/topic data.test=other.csv
  ssl evaluate run=runs/lm data.test='heldout/*.txt'
  ssl evaluate from=runs/lm task=text_classification task.head=zero_shot data.test=test.csv 'data.labels=[sports,politics]'
  ssl evaluate from=runs/lm task=text_similarity data.test=pairs.csv
  ssl evaluate run=runs/find data.test=queries/ data.gallery=gallery/""",
    ),
    "export": (
        "ssl export: a finished run as files that other tools load. It does not finish unless they agree with the trained model.",
        (),
        """\
  run=runs/topic               the run
  format=hf                    hf (plain transformers), onnx (needs the extra: pip install 'sslcli[onnx]'), torch (torch.export)
  out=dist/topic               where to
  rows=64                      how many of the run's own rows the export is compared on""",
        """\
  ssl export run=runs/topic format=hf out=dist/topic
  ssl export run=runs/topic format=onnx out=dist/topic-onnx""",
    ),
    "leaks": (
        "ssl leaks: rows of one part of the data that stand in another as well: word for word, nearly so, or in long pieces.",
        (),
        """\
  data.train=train.csv         two parts or more: data.unlabelled, data.train, data.valid, data.test
  data.kind=image              pictures: equal, re-encoded, resized, or cropped by a few per cent
  data.columns.text=body       which column is what, where guessing is wrong
  out=leaks                    where leaks.json and pairs.csv go""",
        """\
  ssl leaks data.train=train.csv data.test=test.csv
  ssl leaks data.unlabelled='corpus/*.txt' data.train=train.csv data.test=test.csv out=radar
  ssl leaks data.kind=image data.train=photos/train data.test=photos/test""",
    ),
    "label-next": (
        "ssl label-next: which unlabelled rows to label next, by what they would teach a finished classifier of texts or pictures.",
        (),
        """\
  run=runs/topic               the classifier, a run of ssl finetune; the files that it was trained on are read again
  data.unlabelled=pool.csv     rows without labels; those that are labelled already are left out
  data.columns.text=body       which column is what, where guessing is wrong
  count=100                    rows to choose
  out=runs/topic-label-next    where next.csv and label_studio.json (an import for Label Studio) go""",
        """\
  ssl label-next run=runs/topic data.unlabelled=pool.csv count=100
  ssl label-next run=runs/photos data.unlabelled=unsorted/ count=50 out=to-label""",
    ),
    "report": (
        "ssl report: what finished runs came to, as one HTML page that loads nothing. Several runs are compared.",
        (),
        """\
  run=runs/topic               the run, or several: run=[runs/a,runs/b]; differences are to the first
  out=topic.html               where to; left out, report.html in the run's folder, of several comparison.html in the first's
  report.language=zh           en or zh""",
        """\
  ssl report run=runs/topic
  ssl report run=[runs/topic,runs/scratch] out=compared.html
  ssl report run=runs/topic report.language=zh out=topic-zh.html""",
    ),
}


def overview() -> str:
    return OVERVIEW


def verb(name: str) -> str:
    title, groups, overrides, examples = VERBS[name]
    parts = [title, f"usage: ssl {name} [key=value ...] [options]"]
    found = choices()
    shown = [f"  {g}\n" + "\n".join(f"    {c:22} {line}" for c, line in found[g].items()) for g in groups if found.get(g)]
    if shown:
        parts.append("choices (group=choice)\n" + "\n".join(shown))
    parts += [f"most used keys\n{overrides}", f"examples\n{examples}", OPTIONS, f"ssl {name} --cfg job prints every key with its value."]
    return "\n\n".join(parts)


def home() -> Path:
    """The folder of YAML files: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def choices() -> dict[str, dict[str, str]]:
    """Group -> choice -> the one line that its file begins with."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(home().glob("*/*.yaml")):
        with path.open(encoding="utf-8") as file:
            line = next(text for text in file if not text.startswith("# @"))  # Hydra's own header comes first
        found.setdefault(path.parent.name, {})[path.stem] = line.lstrip("# ").rstrip()
    return found
