"""Tells the story with the commands that a user would type, and prints each before it runs."""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import NoReturn

from demo import images
from demo.service import Service

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.path.dirname(sys.executable)
NODE_CACHE_SIZE = "1GB"


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--dir", default=".demo", help="where it works; deleted first (default: .demo)")
    parser.add_argument("--s3", action="store_true", help="with a bucket of a real S3 service, which it starts and ends")
    options = parser.parse_args()
    story = Story(os.path.abspath(options.dir), with_service=options.s3)
    started_s = time.monotonic()
    try:
        story.tell()
    except KeyboardInterrupt:
        raise SystemExit("\ndemo: interrupted; nothing of it is left running") from None
    finally:
        story.end()
    print(f"\nAll of this took {time.monotonic() - started_s:.0f} s.", end="")
    if options.s3:
        print(" The service and the bucket are gone.")
        return
    print(f" It is kept in {story.place}: look around with")
    print(f"  export VAULTFS_STORE={story.place}/store VAULTFS_CACHE_DIR={story.place}/cache PATH={BIN}:$PATH")


class Story:
    """The steps of the demo, in one folder."""

    def __init__(self, place: str, *, with_service: bool) -> None:
        self.place = place
        self.service = Service(f"{place}/gateway") if with_service else None
        self.mountpoint = f"{place}/vault"
        self.environment = {
            **os.environ,
            "VAULTFS_STORE": f"{place}/store",
            "VAULTFS_CACHE_DIR": f"{place}/cache",
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": os.path.dirname(HERE),
        }
        if self.service is not None:
            self.environment["VAULTFS_STORE"] = f"s3://{Service.BUCKET}/team-vault"

    def tell(self) -> None:
        """Go from a folder of images to the record of two training runs."""
        self.end()
        shutil.rmtree(self.place, ignore_errors=True)
        os.makedirs(self.mountpoint)
        if self.service is not None:
            say("Start a real S3 service on this machine: Ceph, with its data in memory.")
            self.environment |= self.service.start()
            print(f"It answers at {self.service.url}, and has a bucket: {Service.BUCKET}.")
        say("Handwritten digits (scikit-learn's copy of the UCI set) as image files in class folders.")
        written, wrong = images.write_digits(f"{self.place}/digits")
        print(f"{written:,} images in {self.place}/digits; {wrong} of the training images lie in a wrong class folder,")
        print("on purpose, as in many a downloaded dataset.")

        say("Freeze the folder as it is, and again after cleaning it.")
        self.run("vault", "init")
        self.run("vault", "commit", "digits", "digits", "-m", "as downloaded")
        self.run("python", f"{HERE}/clean.py", "digits")
        self.run("vault", "commit", "digits", "digits", "-m", "doubtful images removed, wrong labels mended")
        self.run("vault", "log", "digits")
        self.run("vault", "diff", "--stat", "digits@v1", "digits@v2")

        self.show_requests("All of that took the service")
        if self.service is None:
            say("Train through the mount, once per version. The program opens files; it has never heard of Vault.")
            self.run("vault", "mount", "vault")
            accuracies = [self.train(version) for version in ("digits@v1", "digits@v2")]
        else:
            accuracies = self.train_on_a_node()

        say("Who read what? Nobody declared anything.")
        self.run("vault", "runs", "--dataset", "digits", "--class", "training")
        self.run("vault", "audit", f"digits@v1/{self.a_removed_image()}")
        self.run("vault", "umount", "vault")

        say("The two accuracies on the same test images")
        for version, accuracy in zip(("digits@v1", "digits@v2"), accuracies, strict=True):
            print(f"  {version}  {accuracy}")

    def train_on_a_node(self) -> list[str]:
        """Train on a machine that has nothing yet, as far as Vault can tell: its cache is another, empty folder."""
        say("Another machine: it knows the bucket, and its cache is empty. The program has never heard of Vault, or of S3.")
        self.environment["VAULTFS_CACHE_DIR"] = f"{self.place}/node"
        self.run("vault", "mount", "--cache-size", NODE_CACHE_SIZE, "vault")
        accuracies = [self.train("digits@v1")]
        self.show_requests("Mounting, and reading each of the images for the first time, took the service")
        say("Once more: now they are on this machine.")
        self.train("digits@v1")
        self.show_requests("The second training took the service")
        say("The cleaned version: most of its images are the same.")
        accuracies.append(self.train("digits@v2"))
        self.show_requests("The third one took the service")
        self.run("vault", "cache", "status")
        return accuracies

    def show_requests(self, what: str) -> None:
        """Say what the service was asked since the last time."""
        if self.service is not None:
            print(f"{what} {self.service.asked()}.", flush=True)

    def train(self, version: str) -> str:
        """Run the training program on one version, in a session of its own as at another terminal; return its result."""
        output = self.run("python", f"{HERE}/train.py", f"vault/{version}", own_session=True)
        return output.strip().splitlines()[-1]

    def a_removed_image(self) -> str:
        """Return the path of an image that only the first version has."""
        output = self.capture("vault", "diff", "--json", "digits@v1", "digits@v2")
        changes = [json.loads(line) for line in output.splitlines()]
        return next(str(change["path"]) for change in changes if change.get("kind") == "removed")

    def run(self, *command: str, own_session: bool = False) -> str:
        """Print a command and its output; return the output. Ends the demo if it fails."""
        shown = [os.path.relpath(word, os.path.dirname(HERE)) if word.startswith(HERE) else word for word in command]
        print(f"$ {shlex.join(shown)}", flush=True)
        process = subprocess.Popen(
            command, cwd=self.place, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=own_session,
        )  # fmt: skip
        try:
            output, _ = process.communicate()
        except BaseException:
            if own_session:  # Ctrl-C does not reach it, and it has children
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        print(output, end="", flush=True)
        if process.returncode:
            give_up(f"the command above failed with exit status {process.returncode}")
        return output

    def capture(self, *command: str) -> str:
        """Return the output of a command without showing it."""
        return subprocess.run(
            command, cwd=self.place, env=self.environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def end(self) -> None:
        """Take mount and service away, whatever happened before."""
        if os.path.ismount(self.mountpoint):
            with contextlib.suppress(subprocess.TimeoutExpired):
                command = ("vault", "umount", "--lazy", self.mountpoint)
                subprocess.run(command, env=self.environment, timeout=60, check=False, stdout=subprocess.DEVNULL)
        if self.service is not None:
            self.service.end()


def say(text: str) -> None:
    """Begin a chapter."""
    print(f"\n== {text}\n", flush=True)


def give_up(reason: str) -> NoReturn:
    """End the demo."""
    print(f"demo: {reason}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
