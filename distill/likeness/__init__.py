"""How alike student and teacher are: similarity of their answers, and claims of another model's identity."""
