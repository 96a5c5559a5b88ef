"""The files of `torch.save`: zip archives and the kinds before and beside them."""
