"""What the teacher gives: traces, log-probabilities, distributions."""
