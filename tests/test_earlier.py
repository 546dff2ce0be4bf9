"""Runs of earlier versions are read: what their configuration does not say is what new runs get."""

import pytest

from sslcli import config, earlier, schema
from sslcli.commands.finetune import finetune


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        ([], [("task", "risk"), ("task", "head"), ("trainer", "seeds"), ("data", "unlabelled")]),
        (["task=image_classification", "data=digits"], [("augment", "kind"), ("task", "risk"), ("trainer", "patience")]),
    ],
)
def test_keys_that_came_later(words, gone) -> None:
    tree = config.compose("finetune", words).tree
    before = {k: {n: x for n, x in v.items() if (k, n) not in gone} if isinstance(v, dict) else v for k, v in tree.items()}
    found = earlier.completed(before, "finetune")
    schema.check(finetune, found)
    assert all(found[group][key] == tree[group][key] for group, key in gone if key in tree[group])


def test_what_a_run_says_stays() -> None:
    tree = config.compose("finetune", ["task.head=mlp", "trainer.epochs=2"]).tree
    found = earlier.completed(tree, "finetune")
    assert all(found[key] == value for key, value in tree.items() if key != "augment")
