"""Families of verbs over state_dicts."""
