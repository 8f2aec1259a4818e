"""The topics of a report, each with its heading, table, figure and note in one file."""
