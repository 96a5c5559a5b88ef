"""What a pickle or archive would do elsewhere. Nothing is built, imported or called."""
