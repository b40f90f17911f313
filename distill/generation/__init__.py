"""Text from models: sampling, decoding, engines."""
