import pytest

from mimo_engine.bench import parser


@pytest.mark.parametrize("name", ["content", "reasoning", "argument"])
def test_the_bench_measures_each_text_and_loses_no_character(name):
    measured = parser.measure(name, num_tokens=200)
    assert measured.num_tokens >= 200
    assert 0 < measured.median_us <= measured.p99_us <= measured.max_us


def test_the_bench_prints_a_row_for_each_text(capsys):
    parser.main(["--num-tokens", "20", "--no-record"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["text", "content", "reasoning", "argument"]
