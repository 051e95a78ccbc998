"""What users hold: streams, response tuples, merge, gather, tee, and the functions that open them."""
