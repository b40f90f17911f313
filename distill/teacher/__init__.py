"""Teacher signals, computed once and cached: traces, logprobs, distributions."""
