"""The verbs that the root exports: files, live objects, looking."""
