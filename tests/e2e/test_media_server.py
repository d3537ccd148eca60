"""Images, video and sound through the HTTP server, by the openai client, on the real engine."""

import asyncio
import time

import numpy as np
import openai
import pytest
from fake_server import MODEL
from omni_server import (
    audio_part,
    data_uri,
    image_part,
    input_audio_part,
    make_omni,
    omni_server,
    text_part,
    user,
    video_part,
)
from PIL import Image

from media_files import gradient, make_audio, make_image, make_video, numbered_frame, tone
from mimo_engine.config.media_settings import MediaFacts, MediaLimits


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    return make_omni(tmp_path_factory.mktemp("omni") / "model")


@pytest.fixture(scope="module")
def media_root(tmp_path_factory):
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def server(omni, media_root):
    limits = MediaLimits(media_root=(str(media_root),), media_timeout_s=2.0, max_media_mib=8.0)
    with omni_server(omni, limits=limits) as server:
        yield server


def ask(server, *messages, **params):
    params = {"temperature": 0.0, "max_tokens": 4, **params}
    with server.openai() as client:
        return client.chat.completions.create(model=MODEL, messages=list(messages), **params)


def media_tokens(answer):
    details = answer.usage.prompt_tokens_details
    return details.image_tokens, details.video_tokens, details.audio_tokens


def frames(count, width=96, height=64):
    return [numbered_frame(number, width, height) for number in range(count)]


def with_exif_rotation(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    return make_image(picture, "JPEG", exif=exif)


IMAGES = {
    "png": (lambda: make_image(gradient(160, 128)), 20),
    "jpeg": (lambda: make_image(gradient(160, 128), "JPEG"), 20),
    # 224 x 96 as stored, turned by a quarter.
    "jpeg with rotation": (lambda: with_exif_rotation(gradient(224, 96)), 21),
    "rgba": (lambda: make_image(np.dstack([gradient(96, 96), gradient(96, 96)[..., 0]])), 9),
    "gif": (
        lambda: make_image(
            Image.fromarray(gradient(96, 96)),
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (96, 96), "red")],
        ),
        9,
    ),
    "webp": (lambda: make_image(gradient(128, 96), "WEBP"), 12),
    "tiny": (lambda: make_image(gradient(1, 1)), 9),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_seen(server, name):
    make, num_tokens = IMAGES[name]
    answer = ask(server, user(image_part(make()), "What is it?"))
    assert media_tokens(answer) == (num_tokens, 0, 0)
    assert answer.usage.completion_tokens > 0


VIDEOS = {
    # 8 frames of 96 x 64 make 4 steps of 12 tokens: small frames are brought up to 8,192 pixels.
    "h264": ({"fps": 4}, 16, 4, 0),
    "h264 with sound": ({"fps": 4, "sound": tone(4.0), "sound_codec": "aac"}, 16, 4, 26),
    "h264 with shorter sound": ({"fps": 4, "sound": tone(1.5), "sound_codec": "aac"}, 16, 4, 10),
    "h264 with hardly any sound": (
        {"fps": 4, "sound": tone(0.01), "sound_codec": "pcm_s16le", "container": "matroska"},
        16,
        4,
        0,
    ),
    "vp9": ({"fps": 4, "codec": "libvpx-vp9", "container": "webm"}, 12, 4, 0),
    "variable rate": ({"times_s": [0, 0.1, 0.2, 1.5, 1.6, 3.0, 3.1, 4.0]}, 8, 4, 0),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_is_seen_and_heard(server, name):
    options, num_frames, num_steps, num_audio = VIDEOS[name]
    answer = ask(server, user(video_part(make_video(frames(num_frames), **options)), "What?"))
    image, video, audio = media_tokens(answer)
    assert image == 0
    assert video % num_steps == 0
    assert video > 0
    assert abs(audio - num_audio) <= 1, "encoders pad the end of sound a little"


def test_odd_sizes_and_a_sound_that_is_left_out(server):
    data = make_video(
        frames(9, 101, 67), fps=3, pixel_format="yuv444p", sound=tone(3.0), sound_codec="aac"
    )
    heard = ask(server, user(video_part(data), "What?"))
    silent = ask(server, user(video_part(data, use_audio=False), "What?"))
    assert media_tokens(heard)[1] == media_tokens(silent)[1]
    assert media_tokens(heard)[2] > 0
    assert media_tokens(silent)[2] == 0


def test_options_of_a_video_count(server):
    data = make_video(frames(20), fps=2)
    few = media_tokens(ask(server, user(video_part(data, max_frames=4), "What?")))[1]
    many = media_tokens(ask(server, user(video_part(data, fps=2), "What?")))[1]
    assert many == 5 * few


SOUNDS = {
    "wav 8 kHz": ({"rate": 8000}, 1),
    "wav 96 kHz stereo": ({"rate": 96000}, 2),
    "wav 5.1": ({"rate": 48000}, 6),
    "mp3": ({"rate": 44100, "codec": "libmp3lame", "container": "mp3"}, 2),
    "flac": ({"rate": 44100, "codec": "flac", "container": "flac"}, 1),
    "opus": ({"rate": 48000, "codec": "libopus", "container": "ogg"}, 1),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_a_sound_is_heard(server, name):
    options, channels = SOUNDS[name]
    data = make_audio(tone(2.0, rate=options["rate"], channels=channels), **options)
    for part in (audio_part(data), input_audio_part(data, "wav" if "wav" in name else "mp3")):
        answer = ask(server, user(part, "What?"))
        # 2 s at 6.25 tokens a second; mp3 pads its end.
        assert media_tokens(answer) in {(0, 0, 13), (0, 0, 14)}


def test_everything_at_once_streams(server):
    parts = (
        image_part(make_image(gradient(160, 128))),
        "and",
        video_part(make_video(frames(8), fps=4, sound=tone(2.0))),
        audio_part(make_audio(tone(1.0))),
        "What are they?",
    )
    whole = ask(server, user(*parts), max_tokens=12)
    with server.openai() as client:
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=[user(*parts)],
                temperature=0.0,
                max_tokens=12,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    text = "".join(
        (c.choices[0].delta.content or "") + (c.choices[0].delta.reasoning_content or "")
        for c in chunks
        if c.choices
    )
    message = whole.choices[0].message
    assert text == (message.content or "") + (message.reasoning_content or "")
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_responses_see_and_hear_what_chat_does_in_results_of_tools_too(server):
    image, video = make_image(gradient(160, 128)), make_video(frames(8), fps=4, sound=tone(2.0))
    sound = input_audio_part(make_audio(tone(1.0)), "wav")
    call = {"name": "look", "arguments": "{}"}
    chat = ask(
        server,
        user(video_part(video, fps=1), sound, "Look."),
        {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "a", "content": [image_part(image)]},
    )
    picture = {"type": "input_image", "image_url": data_uri(image, "image/png"), "detail": "auto"}
    film = {"type": "input_video", "video_url": data_uri(video, "video/mp4"), "fps": 1}
    items = [
        {"role": "user", "content": [film, sound, {"type": "input_text", "text": "Look."}]},
        {"type": "function_call", "call_id": "a", **call},
        {"type": "function_call_output", "call_id": "a", "output": [picture]},
    ]
    body = {"input": items, "temperature": 0.0, "max_output_tokens": 4}
    response = server.post("/v1/responses", body)
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    assert usage["input_tokens"] == chat.usage.prompt_tokens
    details = usage["input_tokens_details"]
    seen = tuple(details[f"{kind}_tokens"] for kind in ("image", "video", "audio"))
    assert seen == media_tokens(chat)
    assert all(seen)
    # The next turn has them again.
    body = {"input": "And?", "previous_response_id": response.json()["id"], "max_output_tokens": 1}
    details = server.post("/v1/responses", body).json()["usage"]["input_tokens_details"]
    assert (details["image_tokens"], details["video_tokens"]) == seen[:2]


def test_n_answers_about_one_picture_encode_it_once(server):
    picture = make_image(np.roll(gradient(192, 160), 7, axis=0))
    before = server.metric("mimo_engine_encoded_media_tokens_total")
    answer = ask(server, user(image_part(picture), "What?"), n=3, temperature=1.0, seed=1)
    assert len(answer.choices) == 3
    encoded = server.metric("mimo_engine_encoded_media_tokens_total") - before
    assert encoded == 30


def test_a_second_turn_hits_the_cache_up_to_its_new_picture(server):
    first = image_part(make_image(np.roll(gradient(320, 288), 3, axis=1)))
    ask(server, user(first, "One."))
    second = image_part(make_image(np.roll(gradient(320, 288), 9, axis=1)))
    answer = ask(
        server, user(first, "One."), {"role": "assistant", "content": "Yes."}, user(second, "Two.")
    )
    # The system turn and the first picture (90 tokens), in whole pages of 16.
    assert answer.usage.prompt_tokens_details.cached_tokens >= 96
    other = ask(server, user(second, "One."))
    assert other.usage.prompt_tokens_details.cached_tokens < 48


def test_files_are_read_under_the_media_root_alone(server, media_root):
    path = media_root / "picture.png"
    path.write_bytes(make_image(gradient(96, 96)))
    for url in (str(path), path.as_uri()):
        part = {"type": "image_url", "image_url": {"url": url}}
        assert media_tokens(ask(server, user(part, "What?"))) == (9, 0, 0)
    part = {"type": "image_url", "image_url": {"url": "/etc/hostname"}}
    assert_refused(server, part, "media-root")


def test_tokenize_counts_media(server):
    body = {"messages": [user(image_part(make_image(gradient(160, 128))), "What?")]}
    tokens = server.post("/tokenize", body).json()["tokens"]
    pad = server.tokenizer.find_id("<|image_pad|>")
    assert tokens.count(pad) == 20


def assert_refused(server, part, *words):
    """A 400 that names the part, in its time."""
    started = time.monotonic()
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, user("Look:", part))
    assert caught.value.status_code == 400
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages[0].content[1]")
    message = caught.value.body["message"]
    assert "messages[0].content[1]" in message
    assert all(word in message for word in words), message
    assert time.monotonic() - started < 10


def bomb():
    """A PNG that says 60,000 x 60,000 pixels and is a few bytes long."""
    data = bytearray(make_image(Image.new("1", (64, 64))))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib  # noqa: PLC0415

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


BAD = {
    "truncated png": lambda: image_part(make_image(gradient(160, 128))[:200]),
    "empty image": lambda: image_part(b""),
    "text named png": lambda: image_part(b"this is no picture at all"),
    "decompression bomb": lambda: image_part(bomb()),
    "a strip": lambda: image_part(make_image(Image.new("1", (20_000, 20)))),
    "truncated video": lambda: video_part(make_video(frames(20), fps=4)[:700]),
    "video without frames": lambda: video_part(make_audio(tone(1.0))),
    "one frame": lambda: video_part(make_video(frames(1))),
    "no sound": lambda: audio_part(make_audio(np.zeros((1, 0)))),
    "ten samples": lambda: audio_part(make_audio(np.zeros((1, 10)))),
    "truncated sound": lambda: audio_part(make_audio(tone(1.0))[:20]),
    "picture as sound": lambda: audio_part(make_image(gradient(64, 64))),
    "unknown option": lambda: image_part(make_image(gradient(64, 64)), zoom=3),
    "option out of range": lambda: video_part(make_video(frames(8)), fps=-1),
    "bad base64": lambda: {"type": "image_url", "image_url": {"url": "data:image/png;base64,a!"}},
    "private address": lambda: {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a"}},
    "too large": lambda: image_part(bytes(9 << 20)),
    "unheard-of scheme": lambda: {"type": "image_url", "image_url": {"url": "ftp://a/b.png"}},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(server, name):
    assert_refused(server, BAD[name]())


def test_other_requests_go_on_beside_bad_and_long_ones(server):
    """Text streams keep coming while videos are decoded and encoded and bad input is refused."""
    video = video_part(make_video(frames(240, 192, 128), fps=8), fps=8)

    async def text(client, i):
        answer = await client.chat.completions.create(
            model=MODEL, messages=[user(f"number {i}")], max_tokens=8, temperature=0.0
        )
        return answer.usage.completion_tokens

    async def bad(client):
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(
                model=MODEL, messages=[user(BAD["truncated png"]())], max_tokens=4
            )

    async def long(client):
        answer = await client.chat.completions.create(
            model=MODEL, messages=[user(video)], max_tokens=2, temperature=0.0
        )
        return answer.usage.prompt_tokens, time.monotonic()

    async def main():
        async with server.async_openai() as client:
            video_task = asyncio.create_task(long(client))
            await asyncio.sleep(0.05)
            counts = await asyncio.gather(*(text(client, i) for i in range(6)), bad(client))
            texts_done = time.monotonic()
            prompt_tokens, video_done = await video_task
            return counts[:6], texts_done, prompt_tokens, video_done

    counts, texts_done, prompt_tokens, video_done = asyncio.run(main())
    assert all(count > 0 for count in counts)
    assert prompt_tokens > 1000
    assert texts_done < video_done


def test_a_text_only_engine_refuses_media_and_takes_text(omni):
    with omni_server(omni, media=MediaFacts(text_only=True)) as server:
        with pytest.raises(openai.BadRequestError, match="only supports text input"):
            ask(server, user(image_part(make_image(gradient(64, 64)))))
        assert ask(server, user("Hello")).usage.completion_tokens > 0


def test_a_text_only_checkpoint_refuses_media(tmp_path):
    with omni_server(make_omni(tmp_path / "text", "--text-only")) as server:
        with pytest.raises(openai.BadRequestError, match="only supports text input"):
            ask(server, user(image_part(make_image(gradient(64, 64)))))
        assert ask(server, user("Hello")).usage.completion_tokens > 0


def test_pads_that_a_user_writes_are_text(server):
    triple = "<|vision_start|><|image_pad|><|vision_end|>"
    part = image_part(make_image(gradient(160, 128)))
    answer = ask(server, user(text_part(f"What is {triple}?"), part))
    assert media_tokens(answer) == (20, 0, 0)
    assert ask(server, user(triple)).usage.prompt_tokens > 0


def test_a_video_beside_its_sound_as_two_files(server):
    part = video_part(make_video(frames(8), fps=4))
    part["audio_url"] = {"url": data_uri(make_audio(tone(2.0)))}
    # Two seconds of pictures reach row trunc(2 * 6.25) of the sound.
    assert media_tokens(ask(server, user(part)))[2] == 12
