"""Progress in logs: rates of the last minutes, in units that fit, and no estimate from nothing."""

import pytest

from pipeline.cli.progress_bar import RATE_SECONDS, Rate, progress_line, rate_text, time_text


def test_a_rate_begins_with_the_first_bytes_and_follows_the_last_minutes():
    rate = Rate()
    for second in range(60):  # a model is loaded
        rate.add(second, 500)
        assert rate.per_second is None
    done = 500
    for second in range(60, 64):
        done += 1000
        rate.add(second, done)
    assert rate.per_second is None  # four seconds tell little
    for second in range(64, 400):
        done += 1000
        rate.add(second, done)
        assert rate.per_second == pytest.approx(1000, rel=0.3)
    assert rate.per_second == pytest.approx(1000)
    for second in range(400, 400 + int(RATE_SECONDS) + 1):
        done += 10
        rate.add(second, done)
    assert rate.per_second == pytest.approx(10, rel=0.6)
    for second in range(1000, 1400):
        rate.add(second, done)
    assert rate.per_second is None  # it stands still: nobody knows when it will end
    assert progress_line("x", 1e6, 0, rate).endswith("· nothing new for about 14 min")
    rate.add(1400, done + 1)
    assert rate.still == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((0, 8e6, None), "x: 0.0 of about 8.0 MB · estimating the rate"),
        ((2e6, 6e6, 11_300), "x: 2.0 of about 8.0 MB · 11.3 kB/s · about 9 min left"),
        ((1e3, 4e3, 50), "x: 1.0 of about 5.0 kB · 0.05 kB/s · about 80 s left"),
        ((1e9, 2e12, 2.5e7), "x: 1.0 of about 2001.0 GB · 25.0 MB/s · about 22.2 h left"),
    ],
)
def test_lines_have_units_that_fit(arguments, line):
    *amounts, per_second = arguments
    rate = Rate()
    if per_second is not None:
        for seconds in (0, 1, 11):
            rate.add(seconds, per_second * seconds)
    assert progress_line("x", *amounts, rate) == line


def test_rates_and_times_in_words():
    assert [rate_text(rate) for rate in (12, 9_990, 123_456, 1.5e9)] == [
        *("0.01 kB/s", "9.99 kB/s", "123 kB/s", "1.50 GB/s"),
    ]
    assert [time_text(s) for s in (0.2, 89, 100, 8000)] == [
        *("about 1 s", "about 89 s", "about 2 min", "about 2.2 h"),
    ]
