"""Makes the golden files of the GGUF writer's test. Needs numpy and gguf.

    python make_gguf_golden.py      writes beside itself:
    io_written.gguf         a file by the gguf package: metadata of each type that we write, F32 values that are
                            awkward to round, and the same values as the package quantises them to every type
                            that we write. Ours must be these bytes.
"""
import pathlib

import numpy as np
from gguf import GGUFWriter, GGMLQuantizationType as T
from gguf.quants import quantize

rng = np.random.default_rng(20261125)
WIDTH = 64

rows = [rng.normal(0, 0.05, (16, WIDTH)), rng.normal(0, 3, (4, WIDTH)), rng.uniform(-1e-6, 1e-6, (2, WIDTH))]
# Ties and edges: zero, constant, one value, equal extremes of both signs, halves of a step, numbers whose scale is a
# subnormal half, numbers near the end of the halves.
special = np.zeros((10, WIDTH))
special[1] = 0.7
special[2] = -0.7
special[3, 5] = 1.0
special[4, ::2], special[4, 1::2] = 1.0, -1.0
special[5, ::2], special[5, 1::2] = -1.0, 1.0
special[6] = np.arange(WIDTH) % 32 - 15.5
special[7] = (np.arange(WIDTH) % 32 - 16) / 2
special[8] = rng.normal(0, 1e-5, WIDTH)
special[9] = rng.uniform(-60000, 60000, WIDTH)
x = np.concatenate([*rows, special]).astype(np.float32)

w = GGUFWriter(pathlib.Path(__file__).parent / "io_written.gguf", "golden")
w.add_uint32("golden.u32", 7)
w.add_float32("golden.f32", 0.1)
w.add_bool("golden.bool", True)
w.add_string("golden.string", "grüße")
w.add_array("golden.strings", ["", "a", "Ġthe", "日本"])
w.add_array("golden.ints", [1, -2, 3])
w.add_tensor("x", x)
for t in (T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1):
    w.add_tensor(f"x.{t.name.lower()}", quantize(x, t), raw_dtype=t)
w.add_tensor("vector", np.arange(5, dtype=np.float32))
w.add_tensor("rank3", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
