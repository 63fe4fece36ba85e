"""The Linux FUSE front end: the kernel protocol, the workers, and the record of who opened what."""
