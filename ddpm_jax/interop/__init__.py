"""Published weights, read into the networks here."""
