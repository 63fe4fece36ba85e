"""The command `vault`: arguments, printing, exit codes. What it does is vault.api's; nothing here knows formats."""
