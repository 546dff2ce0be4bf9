"""Peer: MAE with the Transformers Trainer, in the way of its run_mae example. Arguments: one JSON object. Runs in images.PEER's
environment."""

import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise


def main(data: str, batch: int, steps: int, bf16: bool) -> dict:
    import torch
    from datasets import Image, load_dataset
    from torchvision.transforms import Compose, InterpolationMode, Lambda, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor
    from transformers import Trainer, TrainerCallback, TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining

    folder = tempfile.mkdtemp()
    rows = load_dataset("parquet", data_files={"train": f"{data}/train.parquet"}, cache_dir=folder)["train"].cast_column("image", Image())
    views = Compose(
        [
            Lambda(lambda image: image.convert("RGB")),
            RandomResizedCrop(32, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
            RandomHorizontalFlip(),
            ToTensor(),
            Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    rows.set_transform(lambda examples: {"pixel_values": [views(i) for i in examples["image"]]})
    sizes = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    decoder = {f"decoder_{k}": v for k, v in sizes.items()} | {"decoder_num_hidden_layers": 2}
    model = ViTMAEForPreTraining(ViTMAEConfig(image_size=32, patch_size=4, mask_ratio=0.75, norm_pix_loss=True, **sizes, **decoder))
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **_) -> None:
            times.append(time.monotonic())

    options = TrainingArguments(
        folder,
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=6e-4,
        weight_decay=0.05,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )

    def collate(examples: list) -> dict:
        return {"pixel_values": torch.stack([e["pixel_values"] for e in examples])}

    Trainer(model=model, args=options, train_dataset=rows, callbacks=[Clock()], data_collator=collate).train()
    return {"images_per_second": batch / statistics.median(b - a for a, b in pairwise(times[2:]))}


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
