"""A mount that records nothing, to know what recording costs: `python unrecorded.py STORE CACHE POINT`. Stays in front."""

import sys

from vault_fuse.mounting import MountOptions, run_mount

from vault.stores.registry import open_store

if __name__ == "__main__":
    store, cache, point = sys.argv[1:]
    run_mount(lambda: open_store(store), cache, MountOptions(path=point, record=False), lambda: None)
