"""Speech to text as OpenAI's own client asks for it, of speech that the demo model never heard."""

import httpx
import numpy as np
import openai
import pytest
from demo_server import demo_server, spoken_words, wav
from fake_server import MODEL

from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.config.server import TranscriptionConfig

CHUNK_S = 1.9
LIMITS = MediaLimits(max_media_mib=4.0, max_audio_s=20.0)
# One of the questions that the demo model was taught, in other words: it knows no others.
QUESTION = "Please write down what you hear."


@pytest.fixture(scope="module")
def server():
    options = TranscriptionConfig(transcription_prompt=QUESTION, transcription_chunk_s=CHUNK_S)
    with demo_server(media=LIMITS, transcription=options) as server:
        yield server


@pytest.fixture(scope="module")
def transcribe(server):
    with server.openai() as client:

        def call(file, **options):
            options = {"model": MODEL, **options}
            return client.audio.transcriptions.create(file=("speech.wav", file), **options)

        yield call


@pytest.fixture(scope="module")
def speech():
    return list(spoken_words(40))


@pytest.fixture(scope="module")
def talk(speech):
    """A long sound and what is said in it: two words four times, with rests, the last one long."""
    said = [one for one in speech if " " in one[2]][12:16]
    rate = said[0][1]
    parts = [np.pad(samples, (0, rate // 5)) for samples, _, _ in said]
    parts.insert(3, np.zeros(4 * rate, np.float32))
    return wav(np.concatenate(parts), rate), [words for _, _, words in said]


def post(server, *, file=None, **fields):
    files = {"file": ("speech.wav", file)} if file is not None else None
    return httpx.post(f"{server.url}/v1/audio/transcriptions", data=fields, files=files, timeout=60)


def test_speech_of_voices_that_training_never_heard_is_written_down(transcribe, speech):
    texts = [transcribe(wav(samples, rate)).text for samples, rate, _ in speech[:8]]
    assert texts == [words for _, _, words in speech[:8]]


def test_usage_counts_tokens_of_text_and_of_sound(transcribe, speech):
    samples, rate, _ = speech[0]
    usage = transcribe(wav(samples, rate)).usage
    details = usage.input_token_details
    assert usage.type == "tokens"
    assert rate == 24_000
    assert details.audio_tokens == len(samples) // 3840 + 1
    assert usage.input_tokens == details.audio_tokens + details.text_tokens
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_a_stream_says_the_same_in_pieces(transcribe, talk):
    file, said = talk
    *deltas, done = transcribe(file, stream=True)
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert len(deltas) > len(said)
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas) == done.text == " ".join(said)
    assert done.usage.total_tokens == transcribe(file).usage.total_tokens


def test_a_long_sound_is_cut_where_it_is_quiet_and_its_chunks_have_times(transcribe, talk):
    file, said = talk
    answer = transcribe(file, response_format="verbose_json")
    assert answer.text == " ".join(said)
    assert answer.language == "unknown"
    assert answer.duration == answer.usage.seconds > 9.0
    assert [segment.text for segment in answer.segments] == said
    assert [segment.id for segment in answer.segments] == [0, 1, 2, 3]
    first, second, third, last = answer.segments
    assert (first.start, second.start, third.start) == (0, first.end, second.end)
    assert last.start > third.end + 2
    for segment in answer.segments:
        assert 0 < segment.end - segment.start <= CHUNK_S
        assert segment.seek == round(100 * segment.start)
        assert -1 < segment.avg_logprob <= 0
        assert segment.tokens


def test_subtitles_and_plain_text(transcribe, talk):
    file, said = talk
    assert transcribe(file, response_format="text") == " ".join(said) + "\n"
    srt = transcribe(file, response_format="srt")
    blocks = [block.split("\n") for block in srt.strip().split("\n\n")]
    assert [(number, text) for number, _, text in blocks] == [
        (str(i), words) for i, words in enumerate(said, start=1)
    ]
    assert blocks[0][1].startswith("00:00:00,000 --> 00:00:01,")
    head, *cues = transcribe(file, response_format="vtt").strip().split("\n\n")
    assert head == "WEBVTT"
    assert [cue.split("\n")[1] for cue in cues] == said
    assert cues[0].startswith("00:00:00.000 --> 00:00:01.")


def test_log_probabilities_are_those_of_the_text(transcribe, speech):
    samples, rate, words = speech[0]
    answer = transcribe(wav(samples, rate), include=["logprobs"])
    assert "".join(entry.token for entry in answer.logprobs) == words
    assert b"".join(bytes(map(int, entry.bytes)) for entry in answer.logprobs) == words.encode()
    assert all(entry.logprob <= 0 for entry in answer.logprobs)
    *_, done = transcribe(wav(samples, rate), include=["logprobs"], stream=True)
    assert [entry.token for entry in done.logprobs] == [entry.token for entry in answer.logprobs]


def test_in_silence_nothing_is_said(transcribe):
    answer = transcribe(wav(np.zeros(48_000), 16_000))
    assert (answer.text, answer.usage.total_tokens) == ("", 0)
    [done] = transcribe(wav(np.zeros(48_000), 16_000), stream=True)
    assert done.text == ""
    assert transcribe(wav(np.zeros(48_000), 16_000), response_format="srt") == ""


def test_a_request_says_what_language_is_spoken(transcribe, speech):
    samples, rate, words = speech[1]
    options = {"language": "en", "response_format": "verbose_json"}
    answer = transcribe(wav(samples, rate), **options)
    assert (answer.text, answer.language) == (words, "english")


def test_a_limit_of_tokens_holds_for_each_chunk(server, talk):
    answer = post(server, file=talk[0], max_completion_tokens=2).json()
    assert answer["usage"]["output_tokens"] == 2 * 4


SOUND = wav(np.full(8000, 0.1), 16_000)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"file": b"no sound at all"}, "file", "file: "),
        ({"file": b""}, "file", "empty"),
        ({"file": wav(np.full(1000, 0.1), 16_000)}, "file", "shorter than 100 ms"),
        ({"file": wav(np.full(25 * 8000, 0.1), 8000)}, "file", "--max-audio-s"),
        ({"file": SOUND, "language": "xx"}, "language", "ISO 639-1"),
        ({"file": SOUND, "language": "English"}, "language", "ISO 639-1"),
        ({"file": SOUND, "languages": ["en", "xx"]}, "languages", "ISO 639-1"),
        ({"file": SOUND, "response_format": "xml"}, "response_format", "verbose_json"),
        ({"file": SOUND, "response_format": "srt", "stream": "true"}, "response_format", "stream"),
        ({"file": SOUND, "temperature": "hot"}, "temperature", "number"),
        ({"file": SOUND, "temperature": -1}, "temperature", "temperature"),
        ({"file": SOUND, "include": "words"}, "include", "logprobs"),
        ({"file": SOUND, "chunking_strategy[type]": "server_vad"}, None, "not supported"),
        ({"file": SOUND, "known_speaker_names[]": "Ann"}, "known_speaker_names", "not supported"),
        ({"file": SOUND, "no_such_field": 1}, "no_such_field", "unknown"),
        ({"file": SOUND, "prompt": ["a", "b"]}, "prompt", "twice"),
        (
            {
                "file": SOUND,
                "response_format": "verbose_json",
                "timestamp_granularities[]": ["segment", "word"],
            },
            "timestamp_granularities",
            "no times of words",
        ),
        (
            {"file": SOUND, "timestamp_granularities[]": "segment"},
            "timestamp_granularities",
            "verbose_json",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_the_api_s_shape(server, fields, param, words):
    answer = post(server, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
    assert words in error["message"]


def test_a_file_above_the_limit_of_media_is_refused(server):
    answer = post(server, file=bytes(6 * 2**20))
    assert answer.status_code == 400
    assert "--max-media-mib" in answer.json()["error"]["message"]


def test_a_form_without_a_file_and_a_body_that_is_no_form_are_refused(server):
    answers = [
        post(server, model=MODEL),
        server.post("/v1/audio/transcriptions", {"model": MODEL}),
        httpx.post(
            f"{server.url}/v1/audio/transcriptions",
            content=b"--x\r\n",
            headers={"content-type": "multipart/form-data"},
        ),
    ]
    for answer in answers:
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_file_without_sound_is_an_error_before_a_stream_begins(transcribe, stream):
    with pytest.raises(openai.BadRequestError, match="file"):
        transcribe(SOUND[:30], stream=stream)


def test_a_stream_of_a_sound_that_turns_out_too_long_ends_with_an_error(transcribe, speech):
    samples, rate, _ = speech[0]
    repeated = wav(np.tile(samples, 20), rate)
    with pytest.raises(openai.APIError, match="--max-audio-s"):
        list(transcribe(repeated, stream=True))


def test_another_model_is_not_found(transcribe):
    with pytest.raises(openai.NotFoundError):
        transcribe(SOUND, model="whisper-1")


def test_the_described_api_has_the_form_and_the_stream(server):
    described = server.get("/openapi.json").json()["paths"]["/v1/audio/transcriptions"]["post"]
    assert list(described["requestBody"]["content"]) == ["multipart/form-data"]
    assert "text/event-stream" in described["responses"]["200"]["content"]
