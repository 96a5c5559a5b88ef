"""How two state_dicts differ."""
