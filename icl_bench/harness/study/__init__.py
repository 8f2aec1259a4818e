"""Studies: architectures of matched size, tuned and then measured on fresh seeds."""
