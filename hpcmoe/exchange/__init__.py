"""How tokens travel."""
