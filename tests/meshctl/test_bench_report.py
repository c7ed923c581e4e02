"""Figures of the bench: percentiles, ratios, aims, and what the report says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshctl import bench_report as report
from meshctl.bench_report import Aim, Figure, Row, figure, percentile

MACHINE = {"machine": "2 CPUs", "command": "./mesh bench"}


def row(**fields: object) -> Row:
    """A row with defaults."""
    return Row(**({"name": "a | b", "group": "path", "unit": "ms", "ours": figure([10.0])} | fields))  # type: ignore[arg-type]


def test_percentile_is_nearest_rank() -> None:
    """Of 1 to 100 the 50th percentile is 50, the 99th 99, the 100th 100."""
    samples = list(range(100, 0, -1))
    assert [percentile(samples, p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.floats(0, 100))
def test_percentile_is_a_sample_that_enough_do_not_exceed(samples: list[float], percent: float) -> None:
    """It is one of the samples, and at least that share of them is not above it."""
    value = percentile(samples, percent)
    assert value in samples
    assert sum(sample <= value for sample in samples) >= len(samples) * percent / 100 - 1e-6


def test_percentile_of_nothing_is_an_error() -> None:
    """No samples, no figure."""
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)
    assert figure([]) is None


def test_the_tail_of_a_rate_is_its_slow_end() -> None:
    """Where more is better, p99 is what 99 of 100 reach."""
    rates = [float(n) for n in range(1, 101)]
    assert figure(rates, more_is_better=True) == Figure(p50=50, p99=1, max=100)
    assert figure(rates) == Figure(p50=50, p99=99, max=100)


def test_ratio_is_of_the_statistic_that_the_aim_names() -> None:
    """The ratio of p99 for an aim on p99, of p50 without an aim."""
    sides = {"ours": Figure(p50=1, p99=30, max=40), "anchor": Figure(p50=10, p99=40, max=50)}
    assert row(**sides).ratio == 0.1
    assert row(**sides, aim=Aim(of="p99", limit=0.5)).ratio == 0.75


@pytest.mark.parametrize(
    ("aim", "met"),
    [
        (Aim(of="p50", limit=0.5), True),
        (Aim(of="p50", limit=0.49), False),
        (Aim(of="p50", limit=10, ratio=False), True),
        (Aim(of="p50", limit=9, ratio=False), False),
        (Aim(of="p50", limit=0.5, at_least=True), True),
        (Aim(of="p50", limit=1.0, at_least=True), False),
        (None, None),
    ],
)
def test_an_aim_is_met_at_its_limit(aim: Aim | None, met: bool | None) -> None:
    """Ours 10 against 20 is a ratio of exactly 0.5."""
    assert row(anchor=figure([20.0]), aim=aim).met is met


def test_without_a_figure_nothing_is_met_or_missed() -> None:
    """A row that was not measured, or has no anchor for its ratio, claims nothing."""
    aim = Aim(of="p50", limit=1)
    assert row(ours=None, aim=aim).met is None
    assert row(anchor=None, aim=aim).met is None
    assert row(anchor=Figure(p50=0, p99=0, max=0), aim=aim).met is None


def test_differences_are_of_medians_only() -> None:
    """A difference of tails would say nothing, so there is none."""
    assert report.difference(Figure(p50=5, p99=9, max=9), Figure(p50=3, p99=1, max=1)) == Figure(
        p50=2, p99=None, max=None
    )
    assert report.difference(None, figure([1.0])) is None


def test_the_document_is_the_contract() -> None:
    """Machine and rows, plain JSON, with ratio, aim as text and verdict."""
    aim = Aim(of="p50", limit=0.2)
    tree = json.loads(json.dumps(report.document(MACHINE, [row(anchor=figure([20.0]), aim=aim, n=1)])))
    assert tree["machine"] == MACHINE
    assert set(tree["rows"][0]) == {
        "name", "group", "unit", "ours", "anchor", "ratio", "beside", "aim", "met", "n", "note", "more_is_better"
    }  # fmt: skip
    assert tree["rows"][0] | {"ratio": 0.5, "met": False, "aim": "p50 ≤ 0.2x"} == tree["rows"][0]
    assert tree["rows"][0]["ours"] == {"p50": 10.0, "p99": 10.0, "max": 10.0}


def test_the_report_lists_what_was_missed_and_what_was_not_measured() -> None:
    """An aim that was missed and a row without a figure each have a section; a figure is never invented."""
    text = report.markdown(
        MACHINE,
        [
            row(anchor=figure([20.0]), aim=Aim(of="p50", limit=0.2), beside={"raw veth": Figure(p50=3, p99=4, max=5)}),
            row(name="gone", ours=None, note="dnsperf is not installed"),
        ],
    )
    assert "| a \\| b | ms | 10 / 10 / 10 | 20 / 20 / 20 | 0.5x | p50 ≤ 0.2x | NO | 0 |" in text
    assert "| a \\| b | ms | raw veth | 3 / 4 / 5 |" in text
    assert "## Aims that were missed\n\n- a | b: 0.5x, aim p50 ≤ 0.2x" in text
    assert "## Not measured\n\n- gone: dnsperf is not installed" in text
    assert "| gone" not in text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0"), (0.01234, "0.0123"), (47.93, "47.9"), (1234.5, "1,234"), (-5.0, "-5")]
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    """Three significant digits below a thousand, whole numbers from there."""
    assert report.number(value) == text
