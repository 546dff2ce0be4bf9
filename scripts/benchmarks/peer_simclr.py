"""Peer: SimCLR as in lightly's CIFAR-10 benchmark (ResNet-18, small stem, PIL transforms in worker processes, SGD). Arguments: one JSON
object. Runs in an environment of its own (images.PEER)."""

import io
import json
import statistics
import sys
import time
from itertools import pairwise


def main(data: str, batch: int, seconds: float, steps: int, bf16: bool, channels_last: bool, neighbours: bool, seed: int) -> dict:
    import torch
    import torchvision
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    torch.manual_seed(seed)
    net = torchvision.models.resnet18()
    net.conv1, net.maxpool, net.fc = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity(), torch.nn.Identity()
    head, criterion = SimCLRProjectionHead(512, 512, 128), NTXentLoss(temperature=0.5)
    layout = {"memory_format": torch.channels_last} if channels_last else {}
    net = net.to(**layout)
    engine = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.06 * batch / 128, momentum=0.9, weight_decay=5e-4)
    views = _loader(data, "train", SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0), batch, True)
    times, begin = [time.monotonic()], time.monotonic()
    while len(times) <= steps and time.monotonic() - begin < seconds:
        for (first, second), _ in views:
            first, second = first.to(**layout), second.to(**layout)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                pair = head(net(first)), head(net(second))
            loss = criterion(pair[0].float(), pair[1].float())
            engine.zero_grad()
            loss.backward()
            engine.step()
            times.append(time.monotonic())
            if len(times) > steps or times[-1] - begin > seconds:
                break
    rate = batch / statistics.median(b - a for a, b in pairwise(times[2:]))
    found = {"images_per_second": rate, "steps": len(times) - 1, "loss": loss.item()}
    return {**found, "knn": _neighbours(data, net, bf16)} if neighbours else found


def _loader(data: str, split: str, transform, batch: int, shuffle: bool):
    import pyarrow.parquet as pq
    import torch
    from PIL import Image

    table = pq.read_table(f"{data}/{split}.parquet")
    rows = list(zip([x["bytes"] for x in table["image"].to_pylist()], table["label"].to_pylist(), strict=True))

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, i: int):
            return transform(Image.open(io.BytesIO(rows[i][0])).convert("RGB")), rows[i][1]

    return torch.utils.data.DataLoader(Pictures(), batch, shuffle=shuffle, drop_last=shuffle, num_workers=2, persistent_workers=True)


def _neighbours(data: str, net, bf16: bool) -> float:
    """Accuracy of 200 weighted neighbours, as lightly's own benchmark has it."""
    import torch
    import torchvision
    from lightly.utils.benchmarking.knn import knn_predict

    net.eval()
    plain = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    vectors, labels = {}, {}
    for split in ("train", "test"):
        parts, found = [], []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for pixels, label in _loader(data, split, plain, 256, False):
                parts.append(torch.nn.functional.normalize(net(pixels).float(), dim=1))
                found.append(label)
        vectors[split], labels[split] = torch.cat(parts), torch.cat(found)
    said = knn_predict(vectors["test"], vectors["train"].T, labels["train"], 10, knn_k=200)
    return float((said[:, 0] == labels["test"]).float().mean())


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
