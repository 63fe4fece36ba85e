"""Trains a classifier of digit images: `python train.py FOLDER`. Loads images in several processes, prints the accuracy."""

import multiprocessing
import os
import sys
from collections.abc import Iterator

import numpy as np
from PIL import Image
from sklearn.svm import SVC

LOADERS = 3


def paths_and_labels(folder: str) -> Iterator[tuple[str, int]]:
    """Yield the path and the class of each image below a folder of class folders."""
    for label in sorted(os.listdir(folder)):
        for name in sorted(os.listdir(f"{folder}/{label}")):
            yield f"{folder}/{label}/{name}", int(label)


def load(path: str) -> np.ndarray:
    """Return the pixels of an image, 0 to 1, in one row."""
    with Image.open(path) as image:
        return np.asarray(image, dtype=np.float32).reshape(-1) / 240


def load_all(pool: "multiprocessing.pool.Pool", folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (images x 64) and classes of all images below a folder."""
    paths, labels = zip(*paths_and_labels(folder), strict=True)
    return np.stack(pool.map(load, paths, chunksize=32)), np.array(labels)


def main(data: str) -> None:
    """Train on DATA/train, test on DATA/test."""
    with multiprocessing.Pool(LOADERS) as pool:
        train_pixels, train_labels = load_all(pool, f"{data}/train")
        test_pixels, test_labels = load_all(pool, f"{data}/test")
    model = SVC(C=10, gamma=0.5).fit(train_pixels, train_labels)
    accuracy = model.score(test_pixels, test_labels)
    print(f"accuracy {accuracy:.1%} ({len(train_labels):,} training images, {len(test_labels):,} test images)")


if __name__ == "__main__":
    main(sys.argv[1])
