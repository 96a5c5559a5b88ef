"""Reports and state_dicts as text, HTML and notebook views."""
