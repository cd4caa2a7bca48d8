"""Writes e4m3.txt beside this file: `pip install ml_dtypes==0.6.0 numpy && python e4m3.py`."""

from pathlib import Path

import ml_dtypes
import numpy as np

codes = np.arange(256, dtype=np.uint8)
decoded = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)

finite = np.unique(decoded[np.isfinite(decoded)])
middles = (finite[1:] + finite[:-1]) / 2
edges = np.concatenate([finite, middles])
around = [np.nextafter(edges, np.float32(to)) for to in (-np.inf, np.inf)]
mixed = np.random.default_rng(1).standard_normal(200, dtype=np.float32)
scaled = mixed * np.float32(2) ** np.arange(-12, 13, dtype=np.float32).repeat(8)
tiny = np.array([1e-40, -1e-40, 2.0**-10, 3 * 2.0**-10, 2.0**-11], dtype=np.float32)
large = np.array([241, 247.9, 248, 255, 449, 464, 480, 1e9, 3e38, np.inf], dtype=np.float32)
values = np.concatenate([edges, *around, scaled, tiny, large, -large]).astype(np.float32)
values = np.unique(values.view(np.uint32)).view(np.float32)

with Path(__file__).with_name("e4m3.txt").open("w") as out:
    for code, value in zip(codes, decoded):
        print(f"is {code:02x} {value.view(np.uint32):08x}", file=out)
    for value in values:
        to_448 = np.clip(value, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        # The format with infinities is another one in ml_dtypes, with the same codes up to 240.
        to_240 = np.clip(value, -240, 240).astype(ml_dtypes.float8_e4m3).view(np.uint8)
        print(f"to {value.view(np.uint32):08x} {to_448:02x} {to_240:02x}", file=out)
