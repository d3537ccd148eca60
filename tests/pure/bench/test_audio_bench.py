import numpy as np
import pytest

from mimo_engine.bench import audio
from mimo_engine.bench.memory import with_peak_memory


@pytest.mark.parametrize("sound", audio.SOUNDS, ids=lambda sound: sound.container)
def test_the_bench_measures_each_kind_of_file(sound):
    measured = audio.measure(sound, seconds=1.5)
    assert measured.what == sound.name
    assert measured.sound_s_per_s > 0


def test_the_bench_checks_features_before_it_times_them():
    audio.check(seconds=2)


def test_the_bench_measures_each_stage():
    rows = list(audio.measure_stages(audio.SOUNDS[0], seconds=1))
    assert [row.what.strip() for row in rows] == ["decode", "resample", "log-mel"]


def test_a_long_file_is_short_ones_in_a_row():
    measured = audio.measure_long(audio.SOUNDS[1], seconds=2, repeats=3)
    assert measured.seconds == pytest.approx(6, abs=0.3)
    assert measured.features_mb == pytest.approx(0.3, abs=0.05)
    assert 0 < measured.extra_mb < 100


def test_memory_that_is_freed_before_the_end_is_seen():
    def work():
        return float(np.ones(8_000_000).sum())

    result, peak_bytes = with_peak_memory(work)
    assert result == 8_000_000
    assert peak_bytes > 32e6
