"""The Triton forms of the fleet operators."""
