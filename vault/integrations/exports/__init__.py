"""Records in the formats of others: OpenLineage, PROV-JSON, in-toto, Croissant (docs/how-to/export.md).

One module for each format turns values into documents and does nothing else; facts.py collects the values.
"""
