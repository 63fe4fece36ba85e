"""The command line: arguments, environment, printing."""
