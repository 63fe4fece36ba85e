"""The plain way to S3, as a program: `python s3_client.py JOB` downloads with boto3, many ranges at one time, into files.

JOB is a JSON file: {"bucket", "keys": {key: size}, "folder", "threads"}. It prints the seconds from the first request to
the last written byte, and the bytes, as one line of JSON. The interpreter's start and imports are not counted.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.config import Config

RANGE_BYTES = 8 << 20


def download(client, bucket: str, keys: dict[str, int], folder: str, threads: int) -> int:
    """Download objects in ranges; returns how many bytes came."""
    files = {}
    for number, (key, size) in enumerate(keys.items()):
        files[key] = os.open(f"{folder}/{number}", os.O_CREAT | os.O_RDWR | os.O_TRUNC)
        os.ftruncate(files[key], size)

    def fetch(part: tuple[str, int, int]) -> int:
        key, start, end = part
        body = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")["Body"]
        data = body.read()
        return os.pwrite(files[key], data, start)

    parts = [
        (key, start, min(start + RANGE_BYTES, size)) for key, size in keys.items() for start in range(0, size, RANGE_BYTES)
    ]
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(fetch, parts))
    for descriptor in files.values():
        os.close(descriptor)
    return total


def main(path: str) -> None:
    """Do the job and report."""
    with open(path) as file:
        job = json.load(file)
    plain = Config(
        max_pool_connections=job["threads"],
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    client = boto3.client("s3", config=plain)
    started = time.monotonic()
    total = download(client, job["bucket"], job["keys"], job["folder"], job["threads"])
    print(json.dumps({"elapsed_s": time.monotonic() - started, "bytes": total}))


if __name__ == "__main__":
    main(sys.argv[1])
