"""From one target to one proven artifact."""
