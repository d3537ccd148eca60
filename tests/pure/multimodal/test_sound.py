"""Real files: every one is made here, and its decoded samples are compared with what went in."""

import struct
from io import BytesIO

import av
import numpy as np
import pytest

from audio_signals import lcg_noise
from media_config import processor_config
from media_files import make_audio, make_image, make_video, numbered_frame, tone
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.audio import audio_features
from mimo_engine.multimodal.sound import file_blocks

CONFIG = processor_config()
LIMITS = MediaLimits()

LOSSLESS = [
    ("pcm_u8", "wav", 8_000, 1, 8),
    ("pcm_s16le", "wav", 16_000, 1, 16),
    ("pcm_s16le", "wav", 44_100, 2, 16),
    ("pcm_s24le", "wav", 96_000, 2, 24),
    ("pcm_s32le", "wav", 48_000, 6, 24),
    ("pcm_f32le", "wav", 22_050, 2, 24),
    ("pcm_f64le", "wav", 11_025, 1, 24),
    ("pcm_s16be", "aiff", 32_000, 2, 16),
    ("flac", "flac", 44_100, 2, 16),
    ("flac", "flac", 48_000, 6, 16),
    ("flac", "ogg", 24_000, 1, 16),
    ("alac", "ipod", 44_100, 2, 16),
]
LOSSY = [
    ("libmp3lame", "mp3", 8_000, 1),
    ("libmp3lame", "mp3", 44_100, 2),
    ("libopus", "ogg", 48_000, 1),
    ("libopus", "ogg", 48_000, 2),
    ("libopus", "webm", 48_000, 2),
    ("libopus", "matroska", 48_000, 6),
    ("aac", "adts", 44_100, 1),
    ("aac", "ipod", 44_100, 2),
    ("aac", "ipod", 96_000, 1),
    ("aac", "mp4", 48_000, 6),
]


def decoded(source):
    """(samples, rate) of a whole file."""
    blocks = list(file_blocks(source))
    assert len({block.rate for block in blocks}) == 1
    return np.concatenate([block.samples for block in blocks]), blocks[0].rate


def noise_planes(num_samples, channels, bits):
    """Noise [channels, n] that integers of `bits` bits hold exactly."""
    planes = np.stack([lcg_noise(num_samples, seed) for seed in range(channels)])
    return (np.rint(planes * 2.0 ** (bits - 1)) / 2.0 ** (bits - 1)).astype(np.float32)


def tone_of(samples, rate):
    """(frequency, amplitude) of the strongest sine in the second that begins after half a one."""
    spectrum = abs(np.fft.rfft(samples[rate // 2 : 3 * rate // 2])) / rate * 2
    return spectrum.argmax(), spectrum.max()


@pytest.mark.parametrize(("codec", "container", "rate", "channels", "bits"), LOSSLESS)
def test_lossless_files_give_the_mean_of_their_channels_exactly(
    codec, container, rate, channels, bits
):
    planes = noise_planes(2 * rate + 77, channels, bits)
    samples, found_rate = decoded(make_audio(planes, rate=rate, codec=codec, container=container))
    assert found_rate == rate
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, planes.mean(axis=0, dtype=np.float32))


@pytest.mark.parametrize(("codec", "container", "rate", "channels"), LOSSY)
def test_lossy_files_keep_a_tone_its_place_and_its_length(codec, container, rate, channels):
    hertz = 400
    planes = np.repeat(tone(2, rate=rate, hertz=hertz), channels, axis=0)
    data = make_audio(planes, rate=rate, codec=codec, container=container)
    samples, found_rate = decoded(data)
    assert found_rate == rate
    # Encoders pad to whole frames; where the file says so, FFmpeg takes the padding off.
    assert 0 <= len(samples) - 2 * rate <= 2 * 1024
    found_hertz, amplitude = tone_of(samples, rate)
    assert found_hertz == pytest.approx(hertz, abs=1)
    # The low-frequency channel of 5.1 may lose what others keep.
    assert amplitude == pytest.approx(0.5, abs=0.1 if channels == 6 else 0.03)
    if (codec, container) == ("aac", "adts"):
        return  # without a container nothing tells of the encoder's delay
    # In place: a delay of 1 ms would leave an error of the tone's own size.
    error = samples[rate // 2 : rate] - amplitude / 0.5 * planes[0, rate // 2 : rate]
    assert abs(error).max() < 0.05


@pytest.mark.parametrize("source_type", ["bytes", "path"])
def test_files_and_bytes_give_the_features_of_their_samples(tmp_path, source_type):
    planes = noise_planes(44_100, 2, 16)
    source = make_audio(planes, rate=44_100)
    if source_type == "path":
        (tmp_path / "sound.wav").write_bytes(source)
        source = tmp_path / "sound.wav"
    found = audio_features(source, CONFIG, LIMITS)
    expected = audio_features((planes, 44_100), CONFIG, LIMITS)
    assert found.num_samples == expected.num_samples == 24_000
    np.testing.assert_array_equal(found.shared.arrays[0], expected.shared.arrays[0])


def test_the_sound_of_a_video_is_its_first_track():
    sound = tone(2, rate=48_000, channels=2)
    frames = [numbered_frame(i) for i in range(20)]
    video = make_video(frames, fps=10, sound=sound, sound_rate=48_000)
    features = audio_features(video, CONFIG, LIMITS)
    assert features.num_samples == pytest.approx(48_000, abs=1_024)
    with pytest.raises(RequestError, match="the file has no sound"):
        audio_features(make_video(frames, fps=10), CONFIG, LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no sound at all\n" * 200,
        bytes(5_000),
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    ],
    ids=["empty", "text", "zeros", "header", "playlist", "session"],
)
def test_what_is_no_sound_is_refused(data):
    with pytest.raises(RequestError, match=r"cannot be decoded .* send it whole, as WAV"):
        audio_features(data, CONFIG, LIMITS)


def test_a_picture_is_no_sound():
    picture = make_image(numbered_frame(5), "PNG")
    with pytest.raises(RequestError, match=r"cannot be decoded|has no sound"):
        audio_features(picture, CONFIG, LIMITS)


def test_a_file_that_names_another_is_not_followed(tmp_path):
    (tmp_path / "secret.wav").write_bytes(make_audio(tone(1)))
    playlist = tmp_path / "list.ffconcat"
    playlist.write_text(f"ffconcat version 1.0\nfile {tmp_path / 'secret.wav'}\n")
    for source in (playlist, playlist.read_bytes()):
        with pytest.raises(RequestError, match="cannot be decoded"):
            audio_features(source, CONFIG, LIMITS)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "none.wav", tmp_path):
        with pytest.raises(RequestError, match="the file cannot be read: "):
            audio_features(path, CONFIG, LIMITS)


@pytest.mark.parametrize(
    ("codec", "container"),
    [("flac", "flac"), ("aac", "ipod"), ("alac", "ipod")],
)
def test_a_file_that_breaks_off_is_refused(codec, container):
    data = make_audio(np.stack([lcg_noise(96_000)]), codec=codec, container=container)
    with pytest.raises(RequestError, match=r"cannot be decoded .* damaged, cut off"):
        audio_features(data[: len(data) // 2], CONFIG, LIMITS)


@pytest.mark.parametrize(
    ("codec", "container"), [("pcm_s16le", "wav"), ("libmp3lame", "mp3"), ("aac", "adts")]
)
def test_a_file_of_frames_alone_ends_where_it_breaks_off(codec, container):
    data = make_audio(lcg_noise(96_000), codec=codec, container=container)
    for cut in range(len(data) // 2, len(data) // 2 + 200, 7):
        features = audio_features(data[:cut], CONFIG, LIMITS)
        assert features.num_samples == pytest.approx(48_000, rel=0.1)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_that_was_written_to_a_pipe_is_read_to_its_end(size):
    data = bytearray(make_audio(tone(1)))
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", size)
    assert audio_features(bytes(data), CONFIG, LIMITS).num_samples == 24_000


def test_mp3_files_in_a_row_play_one_after_the_other():
    data = make_audio(tone(1), codec="libmp3lame", container="mp3")
    for junk in (b"", bytes(3_000), b"TAG" + bytes(125)):
        features = audio_features(data + junk + data, CONFIG, LIMITS)
        assert features.num_samples == pytest.approx(48_000, abs=3_000)


def test_a_tag_that_is_no_utf8_does_no_harm():
    data = bytearray(make_audio(tone(1)))
    text = b"IART\x04\x00\x00\x00\xe9\xe8\xff\x00"
    place = data.index(b"data")
    data[place:place] = b"LIST" + struct.pack("<I", 4 + len(text)) + b"INFO" + text
    assert audio_features(bytes(data), CONFIG, LIMITS).num_samples == 24_000


def test_a_change_of_channels_is_followed_and_one_of_the_rate_refused():
    mono, stereo, slow = (
        make_audio(tone(1, rate=rate, channels=channels), rate=rate, codec="aac", container="adts")
        for rate, channels in ((44_100, 1), (44_100, 2), (22_050, 1))
    )
    features = audio_features(mono + stereo, CONFIG, LIMITS)
    assert features.num_samples == pytest.approx(48_000, abs=3_000)
    with pytest.raises(RequestError, match="changes its sample rate on the way, from 44,100 to"):
        audio_features(mono + slow, CONFIG, LIMITS)


def many_channels(num_channels, layout, codec):
    """Two seconds of more channels than the helper makes; every channel the same tone."""
    buffer = BytesIO()
    wave = np.rint(tone(2, rate=48_000)[0] * 2**15).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(
        np.repeat(wave, num_channels)[None], format="s16", layout=layout
    )
    frame.sample_rate, frame.pts = 48_000, 0
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream(codec, rate=48_000, layout=layout)
        context = stream.codec_context
        resampler = av.AudioResampler(context.format, layout, 48_000, context.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return buffer.getvalue()


# Formats whose decoders give one array for each channel, and one for all.
@pytest.mark.parametrize("codec", ["aac", "libopus", "pcm_s16le", "flac"])
def test_eight_channels_are_read_and_no_more(codec):
    samples, rate = decoded(many_channels(8, "7.1", codec))
    assert rate == 48_000
    assert tone_of(samples, rate) == (440, pytest.approx(0.5, abs=0.1))


@pytest.mark.parametrize(("num_channels", "layout"), [(12, "7.1.4"), (16, "hexadecagonal")])
def test_more_than_eight_channels_are_refused(num_channels, layout):
    with pytest.raises(RequestError, match=f"has {num_channels} channels, and at most 8"):
        decoded(many_channels(num_channels, layout, "pcm_s16le"))


def test_samples_of_an_odd_format_are_refused():
    data = make_audio(tone(1), codec="pcm_s64le")
    with pytest.raises(RequestError, match="samples of the format s64: re-encode it"):
        audio_features(data, CONFIG, LIMITS)


@pytest.mark.parametrize("value", [np.nan, np.inf, 5_000.0])
def test_a_float_file_with_samples_that_are_no_levels_is_refused(value):
    samples = np.zeros((1, 9_000), np.float32)
    data = bytearray(make_audio(samples, codec="pcm_f32le"))
    data[-400:-396] = struct.pack("<f", value)
    with pytest.raises(RequestError, match="NaN, infinite or over 1,024"):
        audio_features(bytes(data), CONFIG, LIMITS)


def test_a_track_that_starts_late_starts_with_its_first_sample():
    buffer = BytesIO()
    samples = noise_planes(24_000, 1, 16)
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=24_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            (samples * 2**15).astype(np.int16), format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts = 24_000, 3 * 24_000
        output.mux([*stream.encode(frame), *stream.encode()])
    np.testing.assert_array_equal(decoded(buffer.getvalue())[0], samples[0])
