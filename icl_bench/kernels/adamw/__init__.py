"""AdamW over a fleet: all parameters of all members in two launches."""
