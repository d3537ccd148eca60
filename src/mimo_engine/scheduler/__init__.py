"""What runs next. No torch, no clock, no I/O."""
