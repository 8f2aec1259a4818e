"""Both scans in Triton."""
