import pytest

from mimo_engine.bench import media


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_the_bench_measures_pictures(file_format):
    row = media.measure_image(file_format, 320, 240, num_passes=2)
    assert (row.file_format, row.width, row.height) == (file_format, 320, 240)
    assert row.images_per_s > 0
    assert 0 < row.file_mb < 1


def test_the_bench_measures_the_memory_of_a_video(tmp_path):
    path = tmp_path / "video.mp4"
    media.write_video(path, 20, 640, 480)
    row = media.measure_video(path, "bfloat16")
    assert row.num_frames == 20
    assert row.features_mb == pytest.approx(10 * 30 * 40 * 1536 * 2 / 1e6, abs=0.1)
    assert row.features_mb < row.peak_mb
    assert 0 < row.extra_mb <= media.EXTRA_LIMIT_MB
