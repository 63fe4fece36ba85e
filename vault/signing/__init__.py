"""Signatures: the keys they are made with, kept in small text files (docs/format/ledger.md, section 6)."""
