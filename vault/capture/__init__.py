"""What can be found out about a run: whose process reads, its code, environment, machine. Writes nothing to a store."""
