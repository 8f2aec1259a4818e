"""Studies: the file that describes one, and the protocol that carries it out."""
