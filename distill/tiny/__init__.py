"""The embedded tiny pair: a synthetic arithmetic task, a tiny teacher and a weaker tiny student.

`task` has problems, solutions and the verifier (pure Python). `build` trains both models from scratch.
`teacher/`, `student/` and `build.json` are the output of `python -m distill.tiny.build`.
"""
