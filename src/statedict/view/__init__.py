"""What there is to say of checkpoints as web pages."""
