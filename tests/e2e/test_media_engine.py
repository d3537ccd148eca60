"""Media through `LLM.chat`: the same numbers whatever is cached, chunked, batched or spread."""

from pathlib import Path

import numpy as np
import pytest
import torch
from media_mixes import conversation
from omni_server import make_omni, omni_config, user

from media_files import gradient, make_video, numbered_frame, tone
from mimo_engine import LLM, SamplingParams
from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.checkpoint.tower_params import Tower
from mimo_engine.checkpoint.towers import load_towers
from mimo_engine.config.engine import CacheConfig, ParallelConfig, SchedulerConfig
from mimo_engine.config.media import served_media
from mimo_engine.config.media_settings import EncoderConfig, MediaLimits
from mimo_engine.config.model import load_model_config
from mimo_engine.errors import RequestError
from mimo_engine.model.audio import encode_audio
from mimo_engine.model.audio_encoder import MiMoAudioEncoder
from mimo_engine.model.audio_tokenizer import MiMoAudioTokenizer
from mimo_engine.model.batch import MediaRows, packed_batch
from mimo_engine.model.text import TextModel
from mimo_engine.model.vision import MiMoVisionTransformer
from mimo_engine.multimodal.audio import audio_features
from mimo_engine.multimodal.image import image_features
from mimo_engine.multimodal.inputs import VideoOptions
from mimo_engine.multimodal.video import video_features

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=2)
SCORED = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, prompt_logprobs=0)
VIDEO = make_video(
    [numbered_frame(i) for i in range(8)], fps=4, sound=tone(2.0), sound_codec="pcm_s16le",
    container="matroska",
)  # fmt: skip
MIXED = [
    user(
        {"type": "image", "image": gradient(160, 128)},
        "and",
        {"type": "video", "video": VIDEO},
        {"type": "audio", "audio": (tone(1.0)[0], 24_000)},
        "What are they?",
    )
]


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    return make_omni(tmp_path_factory.mktemp("omni") / "model")


def make_llm(model, *, chunk=256, prefix_caching=True, **parts):
    return LLM(
        model,
        device="cpu",
        cache=CacheConfig(kv_cache_gib=0.25, prefix_caching=prefix_caching),
        scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=chunk),
        **parts,
    )


def scores(output):
    return [entry.logprob for entry in output.prompt_logprobs[1:]]


def same_text(first, second):
    """Whether two greedy texts agree, but for a tie of the two likeliest tokens."""
    for i, (mine, theirs) in enumerate(zip(first.token_ids, second.token_ids, strict=True)):
        if mine != theirs:
            (_, best), (_, next_best) = first.logprobs[i].top
            return "tie" if best - next_best < 1e-4 else "different"
    return "same"


@torch.inference_mode()
def reference_scores(model_dir, output):
    """Prompt log-probabilities by the cacheless forward, the towers called item by item."""
    config = load_model_config(Path(model_dir))
    media = served_media(omni_config(model_dir))
    text = TextModel.from_weights(
        config,
        load_checkpoint(
            Path(model_dir), config, media=media, dtype=torch.float32, keep_quantised=False
        ),
    )
    weights = load_towers(Path(model_dir), media, dtype=torch.float32)
    vision = MiMoVisionTransformer.from_weights(media.vision, weights[Tower.VISION])
    tokenizer = MiMoAudioTokenizer.from_weights(
        media.audio_tokenizer, weights[Tower.AUDIO_TOKENIZER]
    )
    encoder = MiMoAudioEncoder.from_weights(media.audio, weights[Tower.AUDIO_ENCODER])
    processor, limits = media.processor, MediaLimits()

    def see(features):
        patches = torch.from_numpy(features.shared.arrays[0])
        return vision(patches, [features.grid])

    def hear(source):
        mels = audio_features(source, processor, limits).shared.arrays
        return encode_audio(tokenizer, encoder, [torch.from_numpy(mel) for mel in mels])

    pictures = see(image_features(gradient(160, 128), processor, limits, dtype="float32"))
    frames = see(video_features(VIDEO, processor, limits, VideoOptions(), dtype="float32"))
    # The pictures of two seconds take 12 of the 13 rows of their sound.
    video_sound, clip = hear(VIDEO)[:12], hear((tone(1.0)[0], 24_000))
    ids = torch.tensor(output.prompt_token_ids)
    batch = packed_batch([output.prompt_token_ids])
    places = [
        (ids == processor.image_token_id).nonzero().flatten(),
        (ids == processor.video_token_id).nonzero().flatten(),
        (ids == processor.audio_token_id).nonzero().flatten(),
    ]
    rows = [pictures, frames, torch.cat([video_sound, clip])]
    assert [len(place) for place in places] == [len(row) for row in rows]
    batch = type(batch)(
        token_ids=batch.token_ids,
        positions=batch.positions,
        groups=batch.groups,
        media=MediaRows(rows=torch.cat(places), embeddings=torch.cat(rows)),
    )
    logprobs = text.logits(text(batch))[:, :512].log_softmax(-1)
    return logprobs[:-1].gather(1, ids[1:, None]).flatten().tolist()


@pytest.fixture(scope="module")
def whole(omni):
    """MIXED, scored in one chunk."""
    llm = make_llm(omni, chunk=512)
    (output,) = llm.chat(MIXED, SCORED)
    llm.close()
    return output


def test_every_position_has_the_numbers_of_a_plain_forward(omni, whole):
    assert scores(whole) == pytest.approx(reference_scores(omni, whole), abs=1e-4)


@pytest.mark.parametrize("chunk", [8, 17, 64])
def test_chunks_that_cut_media_change_nothing(omni, whole, chunk):
    llm = make_llm(omni, chunk=chunk)
    (output,) = llm.chat(MIXED, SCORED)
    llm.close()
    assert scores(output) == pytest.approx(scores(whole), abs=1e-4)
    assert output.token_ids == whole.token_ids


def test_two_ranks_see_what_one_sees(omni, whole):
    llm = make_llm(omni, parallel=ParallelConfig(tensor_parallel_size=2))
    (output,) = llm.chat(MIXED, SCORED)
    llm.close()
    assert scores(output) == pytest.approx(scores(whole), abs=1e-4)
    assert output.token_ids == whole.token_ids


def test_a_picture_changes_the_answer(omni):
    llm = make_llm(omni)
    texts = [
        llm.chat([user({"type": "image", "image": image}, "What?")], GREEDY)[0].logprobs
        for image in (gradient(96, 96), gradient(96, 96)[::-1].copy())
    ]
    llm.close()
    assert texts[0] != texts[1]


def test_media_beyond_the_encoder_cache_are_refused_and_small_ones_pass(omni):
    # 24 rows of 256 floats.
    llm = make_llm(omni, encoder=EncoderConfig(encoder_cache_gib=24 * 1024 / 2**30))
    with pytest.raises(RequestError, match="encoder-cache-gib"):
        llm.chat(MIXED, GREEDY)
    picture = [user({"type": "image", "image": gradient(160, 128)}, "What?")]
    outputs = llm.chat([picture] * 3, GREEDY)
    assert len({tuple(output.token_ids) for output in outputs}) == 1
    assert llm.core.stats().encoded_tokens == 20
    llm.close()


def test_bad_media_raise_before_anything_runs(omni):
    llm = make_llm(omni)
    broken = [user({"type": "image", "image": b"nothing"}, "What?")]
    with pytest.raises(RequestError, match=r"messages\[0\]\.content\[0\]"):
        llm.chat([MIXED, broken], GREEDY)
    nan = np.full(5000, np.nan, np.float32)
    with pytest.raises(RequestError, match=r"messages\[0\]\.content\[0\]"):
        llm.chat([user({"type": "audio", "audio": (nan, 24_000)})], GREEDY)
    assert not llm.core.has_work
    assert llm.chat(MIXED, GREEDY)[0].finish_reason == "length"
    llm.close()


def prove_mixes(omni, seeds):
    """Three engines: cold, cached, and crowded, where media are forgotten and pages run short."""
    cold = make_llm(omni, prefix_caching=False)
    warm = make_llm(omni, chunk=48)
    crowded = make_llm(omni, chunk=32, encoder=EncoderConfig(max_encoder_tokens=4))
    verdicts = []
    for first in range(0, len(seeds), 8):
        batch = [conversation(seed) for seed in seeds[first : first + 8]]
        expected = [cold.chat(one, GREEDY)[0] for one in batch]
        for llm in (warm, crowded):
            outputs = llm.chat(batch, GREEDY)
            verdicts += [same_text(a, b) for a, b in zip(expected, outputs, strict=True)]
    hits = warm.core.stats().prefix_hit_tokens
    for llm in (cold, warm, crowded):
        assert llm.core.executor.worker.media.num_items >= 0
        llm.close()
    assert set(verdicts) <= {"same", "tie"}
    assert verdicts.count("tie") <= 0.01 * len(verdicts)
    return hits


def test_random_mixes_have_the_same_text_cold_cached_and_crowded(omni):
    assert prove_mixes(omni, list(range(16))) > 500


@pytest.mark.prove
def test_a_thousand_random_mixes_have_the_same_text(omni):
    assert prove_mixes(omni, list(range(1000))) > 50_000
