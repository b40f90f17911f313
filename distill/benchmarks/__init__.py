"""One benchmark a file: `load` gives its problems, `grade` reads and judges a completion."""
