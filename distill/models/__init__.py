"""Language models: find, load, measure, adapt."""
