"""What kind of program reads: training, a shell's tools, an indexer, a backup, or unknown.

Judged by the executable's name, and by the script's for interpreters. Recorded with every run and never a reason to drop
one: an audit shows all classes, a listing of runs leaves the noise out. Pure. Threads: pure.
"""

from typing import Final

from vault.capture.proc import SHELLS, Process
from vault.capture.process_tree import script_name
from vault.format.records import ProcessClass

_INDEXERS: Final = frozenset(
    (
        "updatedb updatedb.mlocate updatedb.plocate plocate-build mlocate recollindex baloo_file baloo_file_extractor "
        "tracker-miner-fs-3 tracker-miner-fs tracker-extract-3 tracker-extract localsearch-3 localsearch-extractor-3 "
        "tumblerd gnome-desktop-thumbnailer mds mdworker clamd clamscan clamdscan clamonacc freshclam falcon-sensor "
        "wdavdaemon mdatp aide tripwire osqueryd wazuh-syscheckd wazuh-modulesd"
    ).split()
)
_BACKUPS: Final = frozenset(
    (
        "restic borg borgmatic kopia bup duplicity duplicacy rdiff-backup rsnapshot snapper timeshift bacula-fd bareos-fd "
        "dsmc dsmcad veeamagent amandad urbackupclientbackend burp zbackup vorta tarsnap cvd clBackup"
    ).split()
)
_TOOLS: Final = SHELLS | frozenset(
    (
        "ls cat tac head tail less more most bat batcat cp mv dd tar bsdtar cpio zip gzip zstd xz wc sort uniq cut awk "
        "gawk mawk sed grep egrep fgrep rg ag ack find fd fdfind xargs parallel tree du df stat file od xxd hexdump "
        "strings cmp diff md5sum sha1sum sha224sum sha256sum sha384sum sha512sum b2sum b3sum cksum sum rsync rclone scp "
        "sftp-server mc mcli ranger nnn vifm lf vi vim vim.basic vim.tiny nvim nano emacs ed jq column paste join tee nl "
        "shuf split env timeout nohup time watch sudo su eog feh display xdg-open nautilus dolphin thunar coreutils"
    ).split()
)
_TRAINER_NAMES: Final = frozenset(("R Rscript java julia MATLAB torchrun accelerate deepspeed luajit th caffe").split())


def class_of(process: Process) -> ProcessClass:
    """Return the class of one process."""
    program = process.program
    interpreted = program.startswith(("python", "pypy", "perl", "ruby", "node"))
    for name in (program, script_name(process.command)) if interpreted else (program,):
        if name in _INDEXERS:
            return ProcessClass.INDEXER
        if name in _BACKUPS:
            return ProcessClass.BACKUP
        if name in _TOOLS:
            return ProcessClass.SHELL
    if program in _TRAINER_NAMES or program.startswith(("python", "pypy", "ipython", "julia")):
        return ProcessClass.TRAINING
    return ProcessClass.UNKNOWN
