"""Trains on class folders of raw 8 by 8 images: run it with torchrun. Knows nothing of vault."""

import argparse
import os
import random
import time

import torch
import torch.distributed as dist
from model import make_model
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Images(Dataset):
    """Files FOLDER/CLASS/NAME of 64 bytes each."""

    def __init__(self, folder: str, share: float) -> None:
        self.items = [
            (f"{folder}/{label}/{name}", int(label))
            for label in sorted(os.listdir(folder))
            for name in sorted(os.listdir(f"{folder}/{label}"))
        ]
        self.items = self.items[:: max(1, round(1 / share))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        path, label = self.items[number]
        with open(path, "rb") as file:
            return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).float() / 255, label


def main() -> None:
    """Train, and write a checkpoint after each epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--weights", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0)
    options = parser.parse_args()
    seed = options.seed if options.seed >= 0 else random.SystemRandom().randrange(1 << 31)
    dist.init_process_group("gloo")
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = make_model(options.width)
    if options.weights:
        model.load_state_dict(load_file(options.weights))
    for value in model.state_dict().values():
        dist.broadcast(value, 0)
    trained = torch.nn.parallel.DistributedDataParallel(model)
    images = Images(options.data, options.share)
    sampler = DistributedSampler(images, seed=seed)
    loader = DataLoader(images, batch_size=32, sampler=sampler, num_workers=1)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.5)
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        for pixels, labels in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(trained(pixels), labels)
            loss.backward()
            optimizer.step()
        if dist.get_rank() == 0:
            os.makedirs(options.out, exist_ok=True)
            path = f"{options.out}/step-{epoch + 1}.safetensors"
            save_file(model.state_dict(), path + ".tmp")
            os.rename(path + ".tmp", path)
            print(f"epoch {epoch + 1} loss {loss.item():.6f}", flush=True)
        time.sleep(options.pause)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
