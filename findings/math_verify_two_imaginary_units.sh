#!/usr/bin/env bash
# One would guess: math-verify reads the letter i as the same symbol in every answer, so two ways to write one
# complex number are equal, as they are with the letter x.
# What happens: parse() looks at the text of the whole answer for an i that stands alone between word boundaries.
# If it finds one, all symbols are made with real=False; if not ("2i" has no boundary before the i), with real=True.
# Two SymPy symbols of one name and other assumptions are different symbols, so 2i\sqrt{3} is not 2\sqrt{3}i.
# Why it matters: a right answer of a model gets no reward, and both expressions print the same i in a log.
# Source: math_verify/grader.py, complex_number_pattern and should_treat_as_complex; math_verify/parser.py, where
# is_real is passed to latex2sympy; latex2sympy2_extended/symbols.py, get_symbol.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  math-verify==0.9.0 latex2sympy2-extended==1.11.0 antlr4-python3-runtime==4.9.3 sympy==1.14.0
"$work/venv/bin/python" - <<'EOF'
from importlib.metadata import version

from math_verify import parse, verify

print("math-verify", version("math-verify"), "latex2sympy2-extended", version("latex2sympy2-extended"))


def equal(gold, answer):
    gold, answer = parse(f"${gold}$"), parse(f"${answer}$")
    symbols = [[(s.name, s.is_real) for s in side[0].free_symbols] for side in (gold, answer)]
    result = verify(gold, answer)
    print(gold[0], "|", answer[0], "| (name, is_real):", *symbols, "| equal:", result)
    return result


assert equal(r"2x\sqrt{3}", r"2\sqrt{3}x")
assert equal("3i-2", "-2+3i")  # i follows a digit in both: the same symbol
assert not equal(r"2i\sqrt{3}", r"2\sqrt{3}i")
assert not equal(r"-128-128\sqrt{3} i", r"-128-128i\sqrt{3}")
assert not equal("1+3i", r"1+i\cdot 3")
EOF
