"""What a token meets on its own rank: embedding, attention, gate, expert, head."""
