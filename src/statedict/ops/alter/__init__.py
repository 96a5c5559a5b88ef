"""Verbs that alter a state_dict, and lists of them."""
