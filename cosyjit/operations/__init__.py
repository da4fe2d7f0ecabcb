"""What is done with artifacts that exist: status, verify, gc, trends, copies of a store, pushes."""
