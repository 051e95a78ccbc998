"""The objects of users: streams, response tuples, merge, gather, tee, and the functions that open them."""
