"""Resizing and rounding equal torch's, which the vendor's serving stack runs."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from mimo_engine.multimodal.pixels import Resizer, Size, to_bfloat16

# Of 255: interpolate may fuse a multiplication and an addition where numpy does not.
TOLERANCE = 255e-4

SHAPES = [
    ((1080, 1920), (288, 512)),
    ((1080, 1920), (1088, 1920)),
    ((720, 1280), (704, 1280)),
    ((197, 173), (192, 160)),
    ((37, 100), (64, 160)),
    ((1001, 1500), (992, 1504)),
    ((1, 1), (96, 96)),
    ((1, 3), (64, 96)),
    ((3000, 100), (96, 96)),
    ((65, 97), (2880, 64)),
]


@pytest.mark.parametrize(("source", "target"), SHAPES)
def test_bilinear_resizing_equals_interpolate(source, target):
    picture = np.random.default_rng(0).integers(0, 256, (*source, 3), np.uint8)
    ours = Resizer(Size(*source), Size(*target)).rows(picture, 0, target[0])
    planes = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    theirs = interpolate(planes, target, mode="bilinear", align_corners=False, antialias=False)
    np.testing.assert_allclose(ours.transpose(1, 0, 2), theirs[0].numpy(), rtol=0, atol=TOLERANCE)


def test_rounding_to_bfloat16_equals_torchs():
    bits = np.random.default_rng(0).integers(0, 2**32, 1 << 16, np.uint32)
    values = np.concatenate([bits, np.arange(0x7F7FF000, 0x7F801000, dtype=np.uint32)])
    theirs = torch.from_numpy(values.view(np.float32)).to(torch.bfloat16).view(torch.int16)
    ours, theirs = to_bfloat16(values.view(np.float32)), theirs.numpy().view(np.uint16)
    is_nan = np.isnan(values.view(np.float32))
    np.testing.assert_array_equal(ours[~is_nan], theirs[~is_nan])
    assert np.isnan((theirs[is_nan].astype(np.uint32) << 16).view(np.float32)).all()
    assert np.isnan((ours[is_nan].astype(np.uint32) << 16).view(np.float32)).all()
