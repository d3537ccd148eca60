"""A small omni model of the family, trained here: its tasks, its training, its export."""
