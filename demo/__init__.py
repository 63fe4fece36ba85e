"""The demo: real images, a cleaning step, two training jobs that know nothing of Vault, and the record of who read what.

`make demo` runs it. Everything is kept below .demo/ and made anew each time. Not part of the wheel.
"""
