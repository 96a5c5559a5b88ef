"""The readers' side of runs: list, choose, describe, bisect."""
