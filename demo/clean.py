"""Cleans a folder of digit images: `python clean.py FOLDER`. Removes doubtful training images and mends wrong labels.

Each image is judged by a model that has not seen it (cross-validation). Where the model is sure of another class, the image
is moved there; where it finds the given class unlikely and is not sure of any, the image is removed.
"""

import multiprocessing
import os
import sys

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from demo.train import LOADERS, load, paths_and_labels

SURE = 0.8
UNLIKELY = 0.2


def main(data: str) -> None:
    """Clean DATA/train in place."""
    paths, labels = zip(*paths_and_labels(f"{data}/train"), strict=True)
    with multiprocessing.Pool(LOADERS) as pool:
        pixels = np.stack(pool.map(load, paths, chunksize=32))
    model = LogisticRegression(C=0.3, max_iter=2000)
    chances = cross_val_predict(model, pixels, np.array(labels), cv=5, method="predict_proba")
    removed = moved = 0
    for path, label, chance in zip(paths, labels, chances, strict=True):
        best = int(chance.argmax())
        if best != label and chance[best] >= SURE:
            os.rename(path, f"{data}/train/{best}/{os.path.basename(path)}")
            moved += 1
        elif chance[label] < UNLIKELY:
            os.unlink(path)
            removed += 1
    print(f"{removed} images removed, {moved} moved to another class")


if __name__ == "__main__":
    main(sys.argv[1])
