"""The commands of the command line, one file for each noun, and all that a terminal shows."""
