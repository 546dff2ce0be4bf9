"""Peer: masked language modelling with the Transformers Trainer, in the way of its run_mlm example. Arguments: one JSON object."""

import itertools
import json
import sys
import tempfile
import time


def main(
    data: str, tokenizer: str, steps: int, bf16: bool, batch: int, block: int, layers: int, hidden: int, lr: float, seconds: float | None
) -> dict:
    import torch
    from datasets import Dataset
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    set_seed(0)
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.model_max_length = int(1e9)
    texts = [json.loads(line)["text"] for line in open(data, encoding="utf-8")]
    held = {i for i in range(len(texts)) if i % 20 == 7}
    cut = lambda keep: _blocks([t for i, t in enumerate(texts) if (i in held) == keep], words, block)  # noqa: E731
    train, valid = Dataset.from_dict(cut(False)), Dataset.from_dict(cut(True))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            times.append(time.monotonic())
            control.should_training_stop |= seconds is not None and times[-1] - start > seconds

    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        max_steps=steps,
        learning_rate=lr,
        warmup_steps=max(1, steps // 10),
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(
        BertForMaskedLM(config), arguments, DataCollatorForLanguageModeling(words, mlm_probability=0.15), train, valid, callbacks=[Clock()]
    )
    start = time.monotonic()
    trainer.train()
    gaps = sorted(b - a for a, b in itertools.pairwise(times[5:]))
    found = {"tokens_per_second": batch * block / gaps[len(gaps) // 2], "steps": len(times)}
    if seconds is not None:
        found["valid_loss"] = trainer.evaluate()["eval_loss"]
    return found


def _blocks(texts: list[str], words, block: int) -> dict[str, list]:
    coded = words(texts, return_special_tokens_mask=True)
    joined = {k: [x for row in v for x in row] for k, v in coded.items()}
    count = len(joined["input_ids"]) // block
    return {k: [v[i * block : (i + 1) * block] for i in range(count)] for k, v in joined.items()}


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
