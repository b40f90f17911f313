"""The second embedded pair: word problems with long solutions, a teacher and a weaker student.

`task` has the problems, `solutions` writes and checks their solutions (both pure Python). `tokenizer` trains
the subword vocabulary, `fit` trains a model and resumes, `build` makes the pair. `teacher/`, `student/` and
`build.json` are the output of `python -m distill.tiny.steps.build`.
"""
