"""The benchmark: Vault beside the native file system and its peers, on the same trees, in one run. A tool for developers.

`python -m bench` (or `make bench`) runs it. Candidates describe commands and never run them (candidates, peers, vaultfs);
scenarios decide what is measured and in which order (commits, reading, listing, overhead); execute, mounting and readers
are the only modules that start anything, and workspace is what cleans up behind them. Not part of the wheel.
"""
