r"""Tests of answers in notations that models and people use, with near misses: sets of real numbers, units,
words, angles, combinations. Tables of gold answer and answer, by kind."""

import random

import pytest

from distill.benchmarks.grading import answers
from distill.benchmarks.grading.equivalence import compare, readable

pytest.importorskip("math_verify")

_SAME = {
    "words that are no products": [
        ("no", "no"), ("NO", "no"), ("ab", "ba"), ("xy", "yx"), ("xyz", "zyx"), ("2no", "2on"),
        ("it", "ti"), ("in", "ni"), ("a", "a"), ("abc", "cab"), ("bd", "db"), ("mn", "nm"), ("ax", "xa"),
        ("No", "no"), ("tie", "tie"), ("yes", r"\text{yes}"), ("No.", "no"), (r"\text{Yes}", "yes"),
        ("is", "is"), ("pq", "qp"), ("rs", "sr"), ("xyz", "zxy"), ("2ab", "2ba"), ("on", "on"),
    ],
    "sets of real numbers": [
        (r"\mathbb{R}", r"\mathbb R"), (r"\mathbb{R}", r"\R"), (r"\mathbb{R}", r"\Bbb R"),
        (r"\mathbb{R}", r"\Bbb{R}"), (r"\mathbb{R}", r"\mathbf{R}"), (r"\mathbb{R}", r"\mathbf R"),
        (r"\mathbb{R}", r"\reals"), (r"\mathbb{R}", r"\Reals"), (r"\mathbb{R}", r"\mathds{R}"),
        (r"(-\infty,\infty)", r"\R"), (r"(-\infty,\infty)", r"\mathbb R"),
        (r"(-\infty,\infty)", r"\mathbf{R}"), (r"\text{all real numbers}", r"x\in\R"),
        (r"(0,\infty)", r"\mathbb{R}^+"), (r"(0,\infty)", r"\mathbb{R}_{>0}"),
        (r"(0,\infty)", r"\mathbb{R}_+"), (r"(0,\infty)", r"\R^{+}"),
        (r"(0,\infty)", "all positive real numbers"), (r"(0,\infty)", r"\text{positive reals}"),
        ("x>0", "all positive real numbers"), (r"(-\infty,0)", r"\mathbb{R}^-"),
        (r"(-\infty,0)", "negative real numbers"), (r"[0,\infty)", r"\text{all nonnegative real numbers}"),
        (r"[0,\infty)", "non-negative reals"), (r"(-\infty,0]", "all nonpositive real numbers"),
        (r"[0,\infty)", r"\mathbb{R}_{\ge 0}"), (r"(-\infty,2)\cup(2,\infty)", "all real numbers except 2"),
        (r"(-\infty,2)\cup(2,\infty)", r"\text{all reals except 2}"),
        (r"x\ne 2", r"\text{all real numbers except } 2"),
        (r"\mathbb{R}\setminus\{2\}", "all reals except 2"),
        (r"\mathbb{R}\setminus\{2\}", r"\R\setminus\{2\}"),
        (r"\mathbb{R}\setminus\{2\}", r"\mathbb R - \{2\}"),
        (r"\mathbb{R}\setminus\{2,3\}", "all real numbers except 2 and 3"),
        (r"\mathbb{R}\setminus\{2\}", "all real numbers except x=2"),
        (r"\mathbb{R}\setminus\{2\}", "all real x except 2"),
        (r"\mathbb{R}\setminus\{2\}", "all real numbers but 2"),
        (r"\mathbb{R}\setminus\{-2\}", r"\text{all real numbers except }-2"),
        (r"\mathbb{R}\setminus\{2\}", r"\text{all real numbers } x \ne 2"),
        (r"\mathbb{R}\setminus\{2\}", r"\{x \in \R \mid x\ne 2\}"), (r"\mathbb{R}^2", r"\mathbb{R}^2"),
        (r"\mathbb{Z}", r"\Z"), (r"\mathbb{Z}", r"\mathbb Z"), (r"\mathbb{Z}^+", "all positive integers"),
        (r"\mathbb{N}", r"\N"), ("R", "R"), ("R", r"\mathbf{R}"), (r"\mathbf{v}", "v"),
        (r"(-\infty,0)\cup(0,\infty)", r"\mathbb{R}^*"),
        (r"\mathbb{R}\setminus\{0\}", "all nonzero real numbers"),
        (r"\mathbb{R}\setminus\{0\}", r"\text{all real numbers except } 0"),
        (r"(2,\infty)", "all real numbers greater than 2"),
        (r"[2,\infty)", "all real numbers greater than or equal to 2"),
        (r"[2,\infty)", "all reals at least 2"), (r"(-\infty,2)", "all real numbers less than 2"),
        (r"\mathbb{R}", "every real number"), (r"\mathbb{R}", "any real number"),
        (r"\mathbb{R}\setminus\{2\}", r"\mathbb{R}\backslash\{2\}"),
        (r"\mathbb{R}\setminus\{2\}", r"\mathbb{R}/\{2\}"),
        (r"\mathbb{R}\setminus\{2\}", r"x \in \mathbb{R}, x \neq 2"),
        (r"\mathbb{R}\setminus\{0,1\}", "all real numbers except 0 and 1"),
        (r"x \ne 0, 1", "all real numbers except 0 and 1"),
        (r"x \ne 0, 1", r"x \ne 0 \text{ and } x \ne 1"), (r"\mathbb{R}", "real numbers"),
        (r"\mathbb{R}", "the real numbers"), (r"(-\infty, +\infty)", r"\R"),
        (r"(-\infty,\infty)", r"-\infty<x<\infty"), ("x>0", r"\mathbb{R}^+"),
        (r"\mathbb{Z}^+", r"\mathbb Z^+"), ("positive reals", r"\mathbb{R}^+"),
        ("all real numbers except 2", r"x\neq2"), ("all reals except 2", r"(-\infty,2)\cup(2,\infty)"),
        ("all positive real numbers", "x>0"), ("all positive real numbers", r"(0, \infty)"),
        ("all real numbers except 2", "all real numbers except 2"),
        ("all reals except -2 and 2", r"\mathbb{R} \setminus \{2,-2\}"),
        (r"(0,1)\cup(1,\infty)", "all positive real numbers except 1"),
        (r"\mathbb{R}", r"\text{All real numbers}"),
        (r"(-\infty,0]", "all real numbers less than or equal to 0"), ("R", "r"), (r"\mathbb{Q}", r"\Q"),
    ],
    "emphasis": [
        ("5", "*5*"), ("x+1", "_x+1_"), ("x+1", "*x+1*"), ("x+1", "**x+1**"), ("x+1", "__x+1__"),
        ("x+1", "***x+1***"), ("a*b", "a*b"), ("a*b", "b*a"), ("x_1", "x_1"), ("x_1+x_2", "x_2+x_1"),
        ("x", "_x_"), ("5", "__5__"), ("2x", "*2x*"), (r"\frac12", r"*\frac12*"), ("a*b*c", "a*b*c"),
        ("x_1y_1", "x_1y_1"), ("yes", "_yes_"), ("(1,2)", "*(1,2)*"), ("2*3", "6"), ("x^2", "x**2"),
    ],
    "lists that repeat a solution": [
        ("1,2,2", "1,2"), ("1,2", "1,2,2"), ("1,2,2", "2,2,1"), (r"\{1,2,2\}", "1,2"), ("1,1", "1"),
        ("1", "1,1"), ("x=1,x=2,x=2", "1,2"), ("2,2", "2"), ("2,1,1", "1,2"), ("1,1,2,3", "1,2,3"),
        ("-1, 2, 2", "2, -1"), ("1,2,3", "1,1,2,2,3"), ("x=1 or x=2 or x=2", "x=1 or x=2"),
        (r"\frac12,\frac12", "0.5"),
    ],
    "unions, intervals, set builders": [
        (r"(-\infty,-1]\cup[2,\infty)", r"(-\infty,-1],[2,\infty)"),
        (r"(-\infty,-1]\cup[2,\infty)", r"(-\infty,-1] or [2,\infty)"),
        (r"(-\infty,-1]\cup[2,\infty)", r"(-\infty,-1] \text{ or } [2,\infty)"),
        (r"(-\infty,-1]\cup[2,\infty)", r"(-\infty,-1] and [2,\infty)"),
        (r"(-\infty,-1]\cup[2,\infty)", r"(-\infty,-1]\bigcup[2,\infty)"),
        (r"(-\infty,-1]\cup[2,\infty)", r"(-\infty,-1] U [2,\infty)"),
        (r"(-\infty,-1]\cup[2,\infty)", r"x \in (-\infty,-1] \text{ or } x \in [2,\infty)"),
        (r"(-\infty,-1]\cup[2,\infty)", r"(-\infty,-1] \text{ and } [2,\infty)"),
        (r"(-\infty,-1]\cup(2,\infty)", r"]-\infty,-1]\cup]2,\infty["), ("(1,2)", "]1,2["),
        ("[1,2)", "[1,2["), ("(1,2]", "]1,2]"), ("]1,2[", "(1,2)"), ("]1,2[", "1<x<2"),
        ("(1,3)", r"\{x: 1<x<3\}"), ("(1,3)", r"\{x \mid 1<x<3\}"), ("(1,3)", r"\{x | 1<x<3\}"),
        ("1<x<3", r"\{x: 1<x<3\}"), ("(1,3)", r"\{x \in \mathbb{R} : 1 < x < 3\}"),
        ("(0,1)", "x<1 and x>0"), ("0<x<1", "x<1 and x>0"), ("(0,1)", "x>0 and x<1"),
        ("0<x<1", r"x>0 \text{ and } x<1"), ("(0,1)", "x>0, x<1"),
        (r"(-\infty,0)\cup(1,\infty)", "x<0 or x>1"), ("(1,2),(3,4)", r"(1,2)\cup(3,4)"),
        (r"(1,2)\cup(3,4)", "(1,2),(3,4)"), (r"[1,2]\cup[3,4]", "[1,2],[3,4]"), ("x>2", r"(2,\infty)"),
        ("x>2", r"\{x: x>2\}"), (r"(-1,\infty)", r"(-1,+\infty)"),
        (r"(-\infty, 3) \cap (1, \infty)", "(1,3)"), (r"(-\infty,-1)\cup(1,\infty)", "x<-1, x>1"),
        (r"(-\infty,-1)\cup(1,\infty)", "x < -1 or 1 < x"), (r"(-1,1)\cup(2,\infty)", "-1<x<1 or x>2"),
        (r"(2,\infty)", r"\{x \in \mathbb{R} \mid x>2\}"), ("[0,1)", r"0 \le x \text{ and } x < 1"),
        ("[0,1)", r"\{x \in \R : 0 \le x < 1\}"), ("[0,1)", r"\left\{x \,\middle|\, 0 \le x < 1\right\}"),
        ("(1,2]", r"\left]1,2\right]"), ("[1,2)", r"\left[1;2\right["), (r"(-\infty,2)", r"]-\infty;2["),
        (r"[1,2]\cup[3,4]", "[1,2] and [3,4]"), ("[1,3]", r"[1,2]\cup[2,3]"),
        ("(0,2)", "x>0 and x<2 and x<3"), ("(0,1)", "x < 1, 0 < x"), (r"(0,1)\cup(1,2)", r"0<x<2, x\ne 1"),
        (r"[1,2]\cup\{3\}", r"\{3\}\cup[1,2]"), ("(1,2),(3,4)", "(1,2),(3,4)"), ("[1,2[", "[1,2)"),
        (r"x \in [1,2[", "[1,2)"), (r"[-1,1[\cup]2,3]", r"[-1,1)\cup(2,3]"),
        ("[[1,2],[3,4]]", "[[1,2],[3,4]]"), ("1<x<3", r"x \in (1,3)"),
        (r"\{x | x \ne 2\}", r"\mathbb{R} \setminus \{2\}"), (r"\{x : x > 0\}", "x>0"),
    ],
    "currencies and units": [
        ("10", r"10 \frac{km}{h}"), ("10", r"10\frac{\text{km}}{\text{h}}"),
        ("10", r"10 \frac{\text{m}}{\text{s}^2}"), ("10", r"10 \text{ euros}"), ("10", "10 euros"),
        ("10", "CHF 10"), ("10", "10 CHF"), ("10", "10 rupees"), ("10", "10 kr"), ("10", "kr 10"),
        ("10", "10元"), ("10", "元10"), ("10", "10 元"), ("10", "€10"), ("10", "10€"), ("10", "10 €"),
        ("10", "₹10"), ("10", r"10\text{元}"), ("10", "₩10"), ("10", "₽10"), ("10", "₺10"), ("10", "EUR 10"),
        ("10", "10 EUR"), ("10", "GBP 10"), ("10", "10 pounds"), ("10", "A$10"), ("10", "R$10"),
        ("10", "C$10"), ("10", "10 yen"), ("10", "₦10"), ("10", r"10\ \mathrm{km/h}"), ("10", "10 km/h"),
        ("10", r"10\,\frac{\mathrm{km}}{\mathrm{h}}"), ("10", r"10 \text{ km} / \text{h}"),
        (r"\frac{3}{2}", r"\frac32 \frac{km}{h}"), ("10", r"\frac{10 \text{ km}}{\text{h}}"),
        ("2.5", r"2.5 \frac{\text{dollars}}{\text{hour}}"), ("10", r"10 \frac{m}{s}"),
        ("10", r"\text{CHF } 10"), ("1.5", r"\text{Rs. }1.50"), ("10", "10 ¢"), ("10", "10 cents"),
        ("60", r"60\,\frac{\text{miles}}{\text{hour}}"), ("60", r"60 \frac{\text{mi}}{\text{hr}}"),
        ("9.8", r"9.8 \frac{m}{s^2}"), ("5", "5€"), ("5", "€5"), ("5", "5 Euro"), ("5", r"5\text{ CHF}"),
        ("5", "Fr. 5"), ("5", r"\text{Rs } 5"), ("5", "5 SEK"), ("5", "¥5"), ("5", "5円"), ("5", "USD 5"),
        ("5", "$5 USD"), ("5", r"\text{€}5"), ("5", r"5 \text{€}"), ("5", r"\euro 5"), ("5", r"5\euro"),
        ("5", "NZ$5"), ("5", "HK$5"), ("5", r"S\$5"), ("5", "5 km/h"), ("5", r"5 \text{ km/h}"),
        ("5kr", "5kr"), ("5", r"5 \tfrac{\mathrm{km}}{\mathrm{h}}"), ("1250", "CHF 1,250"), ("5", "5 zł"),
        ("5", "zł5"), ("5", "5 bucks"), ("5", "5 baht"),
    ],
    "choices with their texts": [
        ("b", r"(b) -\frac12"), ("(b)", r"(b) -\frac12"), ("B", r"(b) -\frac12"), ("B", "B: 12"),
        ("b", "B: 12"), ("C", "(C): 12"), ("B", r"\text{(B)} 12"), ("B", "B. 12"), ("12", "B: 12"),
        ("C", "(C) x+1"), ("c", "(c) x+1"), ("-1/2", r"(b) -\frac12"), ("a", "(a)"), ("B", "(B) 7"),
        ("B", "(B)7"), ("B", "B) 12"), ("A", "A: 3"), ("b", "(B) 12"), ("(B)", "(b) x+1"),
        ("B", r"\text{B. }12"), ("B", "(B): 12"), ("a", r"(a) \frac{1}{2}"), ("d", "(d) 3"), ("A", "A"),
        ("(b)", "(b)"), ("b", r"\text{(b)} -\frac12"), ("B", r"\textbf{(B)} 12"),
        ("B", r"\mathbf{(B)}\ 12"), ("x", "(x)"),
    ],
    "degrees and radians": [
        (r"60^\circ", r"\frac{\pi}{3}"), (r"\frac{\pi}{3}", r"60^\circ"), (r"\frac{\pi}{3}", "60 degrees"),
        (r"\frac{\pi}{3}", "60°"), ("1/2", r"\cos 60^o"), ("1/2", r"\cos(60^o)"), ("60", "60^o"),
        ("60", "60^{o}"), (r"60^\circ", "60"), ("60", r"60^\circ"), (r"\frac{\pi}{2}", r"90^{\circ}"),
        (r"-\frac{\pi}{6}", r"-30^\circ"), (r"180^\circ", r"\pi"), (r"\pi", r"180^\circ"),
        (r"\frac{\pi}{3},\frac{2\pi}{3}", r"60^\circ, 120^\circ"),
        (r"45^\circ", r"\frac{\pi}{4}\text{ radians}"), (r"\frac{\pi}{3}\text{ radians}", r"60^\circ"),
        (r"60^\circ", r"\frac{\pi}{3} \text{ rad}"), (r"1^\circ", r"\frac{\pi}{180}"),
        (r"x = 60^\circ", r"x = \frac{\pi}{3}"), (r"\angle A = 60^\circ", r"\frac{\pi}{3}"),
        ("0", r"0^\circ"), (r"\frac{\pi}{4}", r"45^\circ"), (r"\frac{2\pi}{3}", r"120^{\circ}"),
        (r"\frac{\pi}{6}", r"x = 30^\circ"),
        (r"\frac{\pi}{6}, \frac{5\pi}{6}", r"30^\circ \text{ and } 150^\circ"),
        (r"30^\circ, 150^\circ", r"\frac{\pi}{6}, \frac{5\pi}{6}"), (r"\sin 30^o", "1/2"),
        ("1/2", r"\sin 30^{o}"), ("1", r"\tan 45^o"), ("90^o", "90"), ("90^o", r"\frac{\pi}{2}"),
        ("30", r"30^{\text{o}}"), (r"120^\circ", r"2\pi/3"), (r"2\pi", r"360^\circ"),
        (r"22.5^\circ", r"\frac{\pi}{8}"), (r"\frac{\pi}{8}", r"\frac{45}{2}^\circ"),
        (r"\frac{\pi}{3}", r"60 \text{ degrees}"), (r"\pi^\circ", r"\pi"),
        (r"\frac{\pi}{3}", r"\angle A = 60^\circ"), (r"(2, 60^\circ)", r"(2, \frac{\pi}{3})"),
    ],
    "thousands in tuples, combinations": [
        ("(1000,2)", "(1,000, 2)"), ("(1,000, 2)", "(1000, 2)"), ("(1,234,567, 2)", "(1234567,2)"),
        ("(1,0)", "(1,0)"), ("10", r"{5 \choose 2}"), (r"\binom{5}{2}", r"{5 \choose 2}"),
        ("10", r"5 \choose 2"), ("10", "C(5,2)"), ("10", "_5C_2"), ("10", "{}_5C_2"), ("10", "{}^5C_2"),
        ("10", "^5C_2"), ("10", "{}_{5}C_{2}"), ("20", "P(5,2)"), ("20", "_5P_2"), ("10", "C(5,3)"),
        (r"\binom{5}{2}", "C(5,2)"), ("C(5,2)", "C(5,2)"), ("P(5,2)", "P(5,2)"), ("10", "C_5^2"),
        (r"\binom{10}{3}", r"{10 \choose 3}"), (r"\binom{n}{k}", r"{n \choose k}"),
        (r"2^{10}-{10 \choose 5}", "772"), ("10", "nCr(5,2)"), ("10", r"\dbinom52"),
        ("10", r"\tbinom{5}{2}"), ("10", r"\binom 52"), (r"\frac{1}{10}", "1/C(5,2)"), ("30", "3C(5,2)"),
        ("(1,2,3)", "(1, 2, 3)"), ("(12,345, 6)", "(12345, 6)"), ("(12345, 6)", "(12,345, 6)"),
        ("(6, 12,345)", "(6, 12345)"), (r"\{1,000, 2\}", r"\{1000, 2\}"), ("(1,000,000)", "1000000"),
        ("(1,200, 3,400)", "(1200,3400)"), ("10", "5 choose 2"), ("10", r"\dbinom{5}{2}"), ("10", "5C2"),
        ("20", "5P2"), ("252", r"{10 \choose 5}"), ("252", "C(10,5)"), ("720", "P(10,3)"),
        ("10", "C(5, 2)"), ("45", r"\binom{10}{2}"), ("35", "_7C_3"), ("35", "^{7}C_{3}"),
        ("210", "^{7}P_{3}"), ("35", r"\mathrm{C}_7^3"), ("20", r"2\binom{5}{2}"), ("120", "C(10,3)"),
        (r"{n \choose 2}", r"\frac{n(n-1)}{2}"), ("(12,345)", "12345"),
    ],
    "conjugates": [
        ("3-4i", r"\overline{3+4i}"), ("3+4i", r"\overline{3-4i}"), ("3-4i", r"\bar{3+4i}"),
        ("-4i", r"\overline{4i}"), (r"\overline{AB}", r"\overline{AB}"), (r"\frac13", r"0.\overline{3}"),
        ("3-4i", r"\overline{(3+4i)}"), ("2-i", r"\overline{2+i}"), (r"\bar{z}", r"\overline{z}"),
        ("25", r"(3+4i)\overline{(3+4i)}"), ("25", r"(3+4i)\overline{3+4i}"), ("i", r"\overline{-i}"),
        ("1-i", r"\overline{1+i}"), (r"3-2i\sqrt{2}", r"\overline{3+2i\sqrt{2}}"),
        ("1+2i", r"\overline{1-2i}"), ("-1-i", r"\overline{-1+i}"),
        (r"\frac{1}{2}-\frac{\sqrt{3}}{2}i", r"\overline{\frac{1}{2}+\frac{\sqrt{3}}{2}i}"),
        ("3-4i", r"\overline{z} = 3-4i"), ("3-4i", r"\overline{z} = \overline{3+4i} = 3-4i"),
        (r"e^{-i\pi/4}", r"\overline{e^{i\pi/4}}"), (r"0.\overline{12}", r"\frac{4}{33}"),
        (r"\overline{BC}", r"\overline{BC}"), (r"2.3\overline{4}", "211/90"),
    ],
    "numbers in words": [
        # the number, or how many millions
        ("3.5", "3.5 million"), ("1", "1 million"), ("3.5 million", "3.5"), ("1", "1 dozen"),
        ("1.5", r"1.5 \text{ million}"),
        ("12", "a dozen"), ("24", "two dozen"), ("1000000", "1 million"), ("3500000", "3.5 million"),
        ("500000", "half a million"), ("12", "twelve"), ("36", "3 dozen"),
        ("3500000", r"3.5 \text{ million}"), ("2000000000", "2 billion"), ("6", "half a dozen"),
        ("6", "half dozen"), ("5000", "5 thousand"), ("1000000", "a million"), ("1000000", r"\$1 million"),
        ("3.5 million", "3500000"), ("1200", "12 hundred"), ("24", "two dozen eggs"),
        ("24", "2 dozen eggs"), ("150", r"\text{one hundred fifty}"), ("2500000", "two and a half million"),
        ("2.5", "two and a half"), ("5.5", "five and a half"), ("1000000000000", "1 trillion"),
        ("3/4", "three quarters"), ("3.5 million", "3.5 million"), ("1000000", "1,000 thousand"),
        ("120", "ten dozen"), ("18", "one and a half dozen"), ("18", "1.5 dozen"), ("0", "zero"),
        ("-5", "minus five"), ("3500000", "3 1/2 million"), ("3500000", r"3\frac12 million"),
        ("12", r"\text{a dozen}"), ("48", "four dozen"), ("1500000", "1.5 million"),
        ("1500000", "one and a half million"), ("250000", "a quarter of a million"),
        ("750000", "three quarters of a million"), ("1000000000", "one billion"), ("7", "seven"),
        ("7.5", "seven and a half"), ("1500000", r"\$1.5 \text{ million}"),
        (r"1.5 \text{ million}", "1500000"), (r"1.5 \text{ million}", "1.5 million"),
        (r"1.5 \text{ million}", "1,500,000"), ("100", "a hundred"), ("1000", "a thousand"),
        ("300", "3 hundred"), ("60", "5 dozen eggs"), ("2/3", "two thirds"), ("1/2", "half"),
        ("1/2", "a half"), ("1.5", "one and a half"), ("1.75", "one and three quarters"),
        ("1000000", "1,000,000"),
    ],
    "ratios": [
        ("3:4", "3:4"), ("3:4", r"\frac34"), ("3:4", "3/4"), (r"\frac34", "3:4"), ("3:4", "6:8"),
        ("3:4", "0.75"), ("3:4", "3 to 4"), ("3:4", r"3 \text{ to } 4"), ("1:2:3", "1:2:3"),
        ("1:2:3", "2:4:6"), ("12:30", "12:30"), ("6:00", "6"), ("3 : 4", "3:4"), (r"\sqrt2:1", r"\sqrt2"),
        ("5", "5:1"), (r"1:\sqrt{2}", r"1 : \sqrt 2"), ("5:3", r"\frac{5}{3}"), (r"3\!:\!4", "3:4"),
        ("2:00", "2:00 pm"), ("2:00", "2"), ("2:3", "4:6"), ("2:3", "2/3"), ("2:3", r"\frac{2}{3}"),
        ("1:2:3", "1 : 2 : 3"), ("1:2:3", "3:6:9"), ("1:2:3", "a:b:c = 1:2:3"), ("2:3", "2 to 3"),
        ("2 to 3", "2:3"), ("1:1", "1"), ("3:4", r"\text{3 to 4}"), ("1 to 2 to 3", "1:2:3"),
        ("0.75", "3:4"),
    ],
}  # fmt: skip
_DIFFERENT = {
    "words that are no products": [
        ("no", "on"), ("on", "no"), ("is", "si"), ("up", "pu"), ("so", "os"), ("no", r"\text{on}"),
        (r"\text{no}", "on"), ("no", "o n"), ("yes", "sey"), ("ten", "net"), ("odd", "dod"),
        ("even", "neve"), ("true", "rute"), ("not", "ton"), ("yes", "no"), ("six", "xis"), ("no", "none"),
        ("No", "On"), ("NO", "ON"), ("or", "ro"),
    ],
    "sets of real numbers": [
        ("B(x>0)", "all positive real numbers"), (r"\mathbb{R}\setminus\{2\}", r"\mathbb{R}\setminus\{3\}"),
        (r"(0,\infty)", r"[0,\infty)"), (r"(0,\infty)", r"\mathbb{R}"), (r"(0,\infty)", "all real numbers"),
        (r"\mathbb{R}", "all positive real numbers"), (r"[0,\infty)", "all positive real numbers"),
        (r"\mathbb{R}", "all real numbers except 2"),
        (r"\mathbb{R}\setminus\{2\}", "all real numbers except 3"), (r"\mathbb{R}\setminus\{2\}", "2"),
        ("2", "all real numbers except 2"), (r"\mathbb{R}", r"\mathbb{Z}"),
        (r"\mathbb{R}", r"\mathbb{R}^+"), (r"\mathbb{Z}^+", r"\mathbb{R}^+"),
        (r"\mathbb{R}", r"\mathbb{R}^2"), (r"\mathbb{R}^+", r"\mathbb{R}^-"),
        (r"[2,\infty)", "all real numbers greater than 2"),
        (r"\mathbb{R}\setminus\{0,1\}", "all real numbers except 0"), (r"x\ge 0", r"\mathbb{R}^+"),
        ("x>0", "positive"), ("all positive real numbers", "B(x>0)"), ("B(x>0)", r"\mathbb{R}^+"),
        ("all real numbers", "all positive integers"), (r"(0,\infty)", r"\text{all } x > 0"),
        (r"\mathbb{R}", r"\mathbb{R}\setminus\{\}"), ("2", r"\mathbb{R}"), (r"\mathbb{C}", r"\C"),
        (r"\mathbb{R}", r"\mathbb{Q}"),
    ],
    "emphasis": [
        ("x_1", "x_2"), ("5", "*6*"),
    ],
    "lists that repeat a solution": [
        ("1,2,2", "1,1,2"), ("1,2,2", "1"), ("1,2,2", "2"), ("1,2,2", "1,3"), ("1,2,3", "1,2"),
        ("(1,2,2)", "(1,2)"), ("(1,2)", "(1,2,2)"), ("1,2,2", "(1,2)"), ("2,2,3", "2,3,3"), ("(2,2)", "2"),
        ("2", "(2,2)"), ("1,1,2", "1,3"), ("1,1,2,2", "1,2,2"), ("(1,1)", "1"),
    ],
    "unions, intervals, set builders": [
        ("[1,2]", "]1,2]"), (r"[1,2]\cup[3,4]", r"]1,2]\cup[3,4]"), ("[1,3)", r"\{x: 1<x<3\}"),
        ("(1,4)", r"\{x \mid 1<x<3\}"), ("(0,1)", "x<1 or x>0"), ("[0,1]", "x<1 and x>0"),
        (r"(-\infty,0)\cup(1,\infty)", "x<0 and x>1"),
        (r"(-\infty,-1]\cup[2,\infty)", r"(-\infty,-1),[2,\infty)"), (r"[1,2]\cup[3,4]", "[1,2] or [3,5]"),
        ("x>4", "y>4"), ("0<x<1", "0<y<1"), ("x<1", "x<2"), (r"(0,1)\cup(1,2)", "(0,2)"),
        ("(0,2)", r"(0,1)\cup(1,2)"), (r"[1,2]\cup\{3\}", "[1,2], 3"), ("(2,1)", "1<x<2"),
        ("(1,2)", "(2,1)"), ("[1,2[", "[1,2]"),
    ],
    "currencies and units": [
        ("10", "R10"), ("10", r"10\frac{x}{y}"), ("10", r"10 \frac{a}{b}"), ("10", "11 euros"),
        ("10", "CHF 11"), ("10k", "10 kr"), ("5", r"5\frac{n}{k}"), ("5", r"5\frac{km}{x}"),
        ("5", r"5\frac{1}{2}"), ("5", "CHF 6"), ("5", "kr 6"), (r"\frac{5k}{r}", "5kr"),
        ("x", r"x \frac{km}{h}"), ("1,250", "€1.250"),
    ],
    "choices with their texts": [
        ("b", "(b)+3"), ("b", "(b) + 3"), ("b", "b+3"), ("B", "C: 12"), ("b", r"(a) -\frac12"),
        ("b", "b - 3"), ("b", "b(x)"), ("b", "(b)7"), ("x", "(x) 5"), ("A", "A = 3"), ("b", "b=3"),
        ("a", r"(b) \frac{1}{2}"), ("b", "(b)x"), ("b", "(b) - 3"), ("b", "(b) = 3"), ("b", "b 3"),
        ("A", "A + 3"), ("C", "C(5,2)"),
    ],
    "degrees and radians": [
        (r"\frac{\pi}{3}", "60"), ("60", r"\frac{\pi}{3}"), (r"30^\circ", r"\frac{\pi}{3}"),
        ("180", r"\pi"), (r"\pi", "180"), (r"\frac{\pi}{3}", r"60^\circ, 120^\circ"), ("x^o", "x"),
        (r"60^\circ", r"60.5^\circ"), (r"60^\circ", r"60\pi"), (r"\frac{\pi}{6}", "30"),
        (r"30^\circ", r"\frac{\pi}{5}"), (r"\pi", "3.14"),
    ],
    "thousands in tuples, combinations": [
        ("(1,000,2)", "(1000,2)"), ("10", "C(5,4)"), ("20", "C(5,2)"), ("10", "P(5,2)"),
        ("(1,000, 2)", "(1000,3)"), ("10", "{}_5P_2"), ("P(5,2)", "P(2,5)"), ("11", "C(5,2)"),
        ("(5,2)", "C(5,2)"), (r"1-\frac{1}{10}", r"1-\frac{1}{C(5,2)}"), ("120", "P(10,3)"),
    ],
    "conjugates": [
        ("3+4i", r"\overline{3+4i}"), (r"\overline{AB}", r"\overline{CD}"), (r"\overline{z}", "z"),
        ("3+4i", r"\overline{\overline{3+4i}}"), ("3-4i", "3+4i"), (r"\overline{BC}", r"\overline{AC}"),
        (r"\overline{x+iy}", "x-iy"),
    ],
    "numbers in words": [
        ("3.6", "3.5 million"), ("35", "3.5 million"), ("3.6 million", "3.5"),
        ("3500000", "3.6 million"), ("12", "two dozen"),
        ("0", "none"), ("13", "a dozen"),
        ("3.5 million", "3.4 million"), ("1.5", "1 and a half"),
        ("24", "2 dozen or 3 dozen"), ("5", "half a dozen"), ("12", "dozen"),
    ],
    "ratios": [
        ("3:4", "4:3"), ("3:4", r"\frac43"), ("1:2:3", "1:3:2"), ("3:4", "3,4"), ("3:4", "34"),
        ("3:4", "7"), ("3:4", r"\frac{3}{5}"), ("3:4", "4 to 3"), ("12:30", "6:15"), ("2:3", "3:2"),
        ("1:2:3", r"\frac16"), ("1:2:3", "1,2,3"), ("1:2", "1:2:3"), ("3:4", "3 : 5"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", _SAME)
def test_the_same_in_another_notation_is_right(kind: str) -> None:
    assert [pair for pair in _SAME[kind] if not compare(*pair)[0]] == []


@pytest.mark.parametrize("kind", _DIFFERENT)
def test_a_near_miss_is_wrong(kind: str) -> None:
    assert [pair for pair in _DIFFERENT[kind] if compare(*pair)[0]] == []


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("The answer is *5*.", "5"), ("The answer is _x+1_", "x+1"),
        ("The answer is *x+1*, as shown.", "x+1"),
        ("**Answer:** *5*", "5"), ("The answer is *5* apples.", "5"), ("#### *5*", "5"),
        ("#### _x+1_", "x+1"),
        ("The final answer is ***5***.", "5"), ("The answer is *Evelyn*.", "Evelyn"),
        ("The answer is *B*.", "B"),
        ("The answer is _x_1_.", "x_1"), ("The answer is a*b.", "a*b"), ("The answer is x_1+x_2.", "x_2+x_1"),
        ("The answer is 2*x**3.", "2x^3"), ("The answer is $x^*$.", "x^*"), ("#### a dozen", "12"),
        ("#### two dozen", "24"), ("#### half a million", "500000"), ("#### twelve", "12"),
        ("The answer is 3.5 million.", "3500000"), ("The answer is $3.5$ million.", "3500000"),
        ("The answer is 1 million people.", "1000000"),
        ("The answer is all real numbers except 2.", r"x \ne 2"),
    ],
)  # fmt: skip
def test_answers_behind_a_marker_in_italics_or_words(completion: str, gold: str) -> None:
    answer, _ = answers.extract(completion, expressions=True)
    assert answer is not None
    assert compare(gold, answer)[0]


# Comparisons that used to have no end.
_ENDLESS = [
    ("all positive real numbers", "B(x>0)"), ("B(x>0)", "all positive real numbers"), (r"B_\pmod{5}+", "x"),
    (r"\pmod{5}_(km[x>0_not", r"\pmod{5}_(km[x>0_not \frac{1}{2}"),
    ("(" * 900 + "x" + ")" * 900, "x+1"), ("x+1", "-(" * 900 + "x" + ")" * 900),
    ("(" * 900 + "1,2" + ")" * 900, "3"),
    (r"\overline{" * 150 + "3+i" + "}" * 150, "x"), ("{" * 300 + "x" + "}" * 300, "y"), ("5", r"\{" * 600),
    (r"\frac{1}{" * 200 + "x" + "}" * 200, "x"), (r"\sqrt{" * 300 + "x" + "}" * 300, "x+1"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), _ENDLESS)
def test_every_comparison_ends(gold: str, answer: str) -> None:
    assert not compare(gold, answer)[0]
    readable(gold)
    readable(answer)


_PIECES = [
    "x", "5", "-", "+", "=", "(", ")", "[", "]", "{", "}", r"\{", r"\}", ",", ":", r"\cup ", r"\infty",
    r"\text{", r"\in ",
    "<", ">", r"\pm ", r"\approx ", "(b) ", "A.", "1,000", r"\pmod{5}", r"\mathbb{R}", "all real numbers",
    " and ", " or ",
    " to ", r"\setminus ", r"\frac{1}{2}", "_", "%", "*", " million", "all positive real numbers", "|",
    r"\overline{",
    r"^\circ", "no", "3:4", "C(5,2)", r"\choose ", " euros", r"\equiv ", "B(x>0)", "x=", "except ",
]  # fmt: skip


@pytest.mark.slow
def test_no_pair_of_texts_is_an_error() -> None:
    draw = random.Random(5)
    for _ in range(10):
        gold, answer = ("".join(draw.choices(_PIECES, k=draw.randint(1, 9))) for _ in range(2))
        assert compare(gold, answer)[1]
        assert compare(gold, gold + answer)[1]
