"""A project on leyden: its models and its data."""
