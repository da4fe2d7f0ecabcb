"""What decides the bytes of an artifact (fingerprint), and what it was made from (record)."""
