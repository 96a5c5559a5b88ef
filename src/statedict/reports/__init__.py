"""What operations found: frozen data with `to_json`."""
