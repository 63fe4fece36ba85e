"""The demo: real images, a cleaning step, two training jobs that know nothing of Vault, and the record of who read what.

`make demo` runs it with a store in a folder, `make demo-s3` with one in a bucket of a real S3 service and a machine that
has nothing yet. Everything is kept below .demo/ and made anew each time. Not part of the wheel.
"""
