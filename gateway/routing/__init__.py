"""Which provider answers: candidates, attempts, breakers."""
