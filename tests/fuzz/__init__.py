"""What is fuzzed, a module for each reader: its seeds, how they are changed, and how it reads."""
