"""Report of a sweep: methods compared with a baseline, in tables, figures and examples."""
