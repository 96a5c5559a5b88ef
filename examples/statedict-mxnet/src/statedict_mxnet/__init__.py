"""Apache MXNet's files for statedict, and an object whose state it captures."""
