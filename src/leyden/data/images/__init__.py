"""Images with one label each, or with several labels or a number."""
