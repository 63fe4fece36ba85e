"""Stores in S3: AWS, Ceph, and services that keep the same promises (docs/format/stores.md, section 3)."""
