"""Objects by digest and small documents, in a directory or a bucket; knows nothing of models."""
