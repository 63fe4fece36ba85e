"""Vault: datasets and checkpoints that cannot drift, and training runs that record themselves.

The public names load on first use (PEP 562), so that `import vault` costs nothing that a script does not need.
"""
