"""Writes the handwritten digits of scikit-learn as image files: train/CLASS/NUMBER.png and test/CLASS/NUMBER.png."""

import os
import random

from PIL import Image
from sklearn.datasets import load_digits

TEST_SHARE = 0.25
WRONG_SHARE = 0.12


def write_digits(folder: str) -> tuple[int, int]:
    """Write all images; put some of the training images into a wrong class folder.

    Returns:
        How many images there are, and how many of them are in a wrong folder. The same in every run.
    """
    digits = load_digits()
    chance = random.Random(7)
    wrong = 0
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "test" if chance.random() < TEST_SHARE else "train"
        shown = int(label)
        if part == "train" and chance.random() < WRONG_SHARE:
            shown = (shown + chance.randrange(1, 10)) % 10
            wrong += 1
        os.makedirs(f"{folder}/{part}/{shown}", exist_ok=True)
        # The original has 17 levels of grey.
        Image.fromarray((pixels * 15).astype("uint8")).save(f"{folder}/{part}/{shown}/{number:04d}.png")
    return len(digits.images), wrong
