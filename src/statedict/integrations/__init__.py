"""Where people train: one module a library. Nothing imports them but whoever uses that library."""
