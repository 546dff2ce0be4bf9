"""The verbs on pictures, as a user types them: embedded digits, tiny networks."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = ["model.width=8", "trainer.steps=6", "trainer.eval_every=3"]
VIT = ["model=vit_nano", "model.layers=1", "model.width=32", "model.heads=2", "model.inner=64", "trainer.steps=6"]


def test_the_whole_story(ssl) -> None:
    done = ssl("pretrain", "data=digits", *SMALL, "run.dir=pre")
    assert done.code == 0, done.err
    assert {"loss", "knn", "probe"} <= done.result["test"].keys()
    for name in ("neighbours.png", "model/config.json", "model/preprocessor_config.json", "predictions.jsonl"):
        assert (Path("pre") / name).exists() == (name != "predictions.jsonl")
    receipts = json.loads(Path("pre/receipts.json").read_text())
    assert receipts["views"]["views"] == 2 and receipts["moved"]
    # the run says by itself that it is one of images
    done = ssl("finetune", "from=pre", "data.shots=5", "trainer.steps=6", "run.dir=task")
    assert done.code == 0, done.err
    assert {"top1", "top5", "macro_f1", "ece", "top1_interval"} <= done.result["test"].keys()
    assert "raw pixels" in done.result["baseline"]["method"]
    lines = [json.loads(x) for x in Path("task/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 359 and lines[0]["gold"] in set("0123456789")
    again = ssl("evaluate", "run=task", "out=again")
    assert again.code == 0 and again.result["test"]["accuracy"] == done.result["test"]["accuracy"]
    assert Path("task/confusion.png").exists() and Path("task/errors.png").exists()
    for format_ in ("onnx", "torch"):
        done = ssl("export", "run=task", f"format={format_}", f"out=dist/{format_}")
        assert done.code == 0, done.err
        assert done.result["agreement"]["rows"] == 64 and done.result["agreement"]["labels_that_differ"] == 0
    done = ssl("export", "run=task", "format=hf", "out=dist/hf")
    assert done.code == 2 and "use format=onnx" in done.err, "the small stem is no network of transformers"


def test_a_vision_transformer_leaves_for_plain_transformers(ssl) -> None:
    assert ssl("pretrain", "objective=mae", *VIT, "run.dir=pre").code == 0
    assert Path("pre/reconstruction.png").exists()
    assert ssl("finetune", "from=pre", "trainer.steps=4", "run.dir=task").code == 0
    done = ssl("export", "run=task", "format=hf", "out=dist")
    assert done.code == 0, done.err
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained("dist")
    assert model.config.id2label[3] == "3"
    assert AutoImageProcessor.from_pretrained("dist") is not None
    done = ssl("export", "run=pre", "format=onnx", "out=features")
    assert done.code == 0, done.err


def test_a_resumed_run_ends_as_an_uninterrupted_one(ssl) -> None:
    one = ["objective=byol", "data=digits", "model.width=8", "trainer.eval_every=100", "trainer.batch_size=64"]
    assert ssl("pretrain", *one, "trainer.steps=8", "run.dir=whole").code == 0
    assert ssl("pretrain", *one, "trainer.steps=8", "trainer.save_every=4", "run.dir=cut").code == 0
    import shutil

    for path in ("cut/checkpoints/step-00000008", "cut/model"):
        shutil.rmtree(path, ignore_errors=True)
    done = ssl("pretrain", "run.dir=cut", "resume=auto")
    assert done.code == 0 and "resumed after step 4" in done.err, done.err
    from safetensors.torch import load_file

    a, b = (load_file(f"{run}/model/model.safetensors") for run in ("whole", "cut"))
    assert all(bool((a[name] == b[name]).all()) for name in a)


def test_preview_draws_and_keeps_nothing(ssl) -> None:
    done = ssl("pretrain", "data=digits", "--preview", "views.png")
    assert done.code == 0, done.err
    assert Image.open("views.png").size[0] > 20 and not Path("runs").exists()
    assert ssl("pretrain", "--preview", "views.png", "data.train=/dev/null").code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["objective=mae", "data=files", "data.train=x.txt"], "is for image data"),
        (["objective=masked_lm", "model=resnet18"], "is for image data"),
        (["data=digits", "augment=none"], "use augment=simclr"),
        (["data=digits", "augment.crop.scal=[0.1,1]"], "did you mean augment.crop.scale"),
        (["data=digits", "model.dept=18"], "did you mean model.depth"),
    ],
)
def test_parts_that_do_not_go_together_are_one_line(ssl, words, said) -> None:
    done = ssl("pretrain", *words)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err, done.err


def test_a_folder_of_own_pictures(ssl, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for label, hue in (("red", 0), ("blue", 2)):
        (tmp_path / "own" / label).mkdir(parents=True)
        for i in range(24):
            pixels = random.integers(0, 80, (20, 24, 3), np.uint8)
            pixels[..., hue] += 150
            Image.fromarray(pixels).save(tmp_path / "own" / label / f"{i}.{'png' if i % 2 else 'jpg'}")
    done = ssl(
        "finetune",
        "task=image_classification",
        "model=resnet18",
        "model.width=8",
        "data.train=own",
        "data.valid_fraction=0.25",
        "trainer.steps=60",
        "run.dir=r",
    )
    assert done.code == 0, done.err
    assert done.result["valid"]["top1"] > 0.9
    (tmp_path / "own" / "red" / "bad.png").write_bytes(b"<html>not found</html>")
    done = ssl("finetune", "task=image_classification", "model=resnet18", "data.train=own", "run.dir=r2")
    assert done.code == 2 and "bad.png" in done.err and "HTML" in done.err and not Path("r2").exists()


def test_solved_heads_take_no_steps(ssl) -> None:
    assert ssl("pretrain", "data=digits", "model.width=8", "trainer.steps=6", "run.dir=pre").code == 0
    for tune in ("probe", "knn"):
        done = ssl("finetune", "from=pre", f"task.tune={tune}", f"run.dir={tune}")
        assert done.code == 0, done.err
        assert done.result["train"]["steps"] == 0 and done.result["test"]["top1"] > 0.5
        again = ssl("evaluate", f"run={tune}", f"out=again-{tune}")
        assert again.result["test"]["accuracy"] == done.result["test"]["accuracy"]
    assert ssl("finetune", "from=pre", "task.tune=probe", "--dry-run").code == 0


def test_retrieval_of_a_held_out_part_with_one_picture_a_label(ssl, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for label in "abcd":
        (tmp_path / "own" / label).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(random.integers(0, 255, (16, 16), np.uint8)).save(tmp_path / "own" / label / f"{i}.png")
    small = ["model=resnet18", "model.width=8", "data.valid_fraction=0.05", "trainer.steps=4"]
    done = ssl("finetune", "task=image_retrieval", "data.train=own", *small, "run.dir=run")
    assert done.code == 0 and json.loads(Path("run/data.json").read_text())["valid"]["examples"] == 4, done.err


def test_retrieval_in_a_gallery(ssl) -> None:
    assert ssl("pretrain", "data=digits", "model.width=8", "trainer.steps=6", "run.dir=pre").code == 0
    done = ssl("finetune", "from=pre", "task=image_retrieval", "trainer.steps=6", "run.dir=find")
    assert done.code == 0, done.err
    assert {"recall@1", "recall@5", "recall@10", "map"} <= done.result["test"].keys()
    assert Path("find/index.jsonl").exists() and Path("find/results.png").exists()
    done = ssl("evaluate", "run=find", "data.test=digits:test", "data.gallery=digits:train", "out=other")
    assert done.code == 0, done.err
    line = json.loads(Path("other/predictions.jsonl").read_text().splitlines()[0])
    assert len(line["nearest"]) == 10 and done.result["test"]["recall@10"] > done.result["test"]["recall@1"] > 0.5
    done = ssl("export", "run=find", "format=onnx", "out=dist")
    assert done.code in (0, 2) and "internal" not in done.err, done.err
