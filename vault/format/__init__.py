"""Bytes <-> values of everything that is stored. Pure: no input, no output, no clock. Spec: docs/format/."""
