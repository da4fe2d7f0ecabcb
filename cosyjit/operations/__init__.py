"""What is done with artifacts that exist: status, verify, diff, gc, trends, copies of a store, pushes."""
