"""`python -m vault`: the same as the command `vault`."""

from vault.cli.main import main

if __name__ == "__main__":
    main()
