"""RMS norm of a fleet, with the residual sum before it."""
