"""How much the subspaces of two LoRA matrices A agree: Hu et al., "LoRA", 2021, equation 4, in plain Python.

  phi(i, j) = ||V8_i^T V64_j||_F^2 / min(i, j)

with the first i and j right singular vectors of the two A's: 0 where the subspaces are orthogonal, 1 where one contains
the other, and max(i, j) / d for random ones of d dimensions.
"""

import json
import math
import os
import struct

COUNTS = ((1, 2, 4, 8), (1, 8, 16, 32, 64))  # i and j


def read_tensors(path):
    """{name: rows} of a safetensors file of two-dimensional F32 tensors."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(size)), file.read()
    tensors = {}
    for name, of in header.items():
        if name == "__metadata__":
            continue
        if of["dtype"] != "F32" or len(of["shape"]) != 2:
            raise ValueError(f"{path}: {name}: {of['dtype']} {of['shape']}, F32 of two dimensions is expected")
        begin, end = of["data_offsets"]
        rows, columns = of["shape"]
        flat = struct.unpack(f"<{rows * columns}f", data[begin:end])
        tensors[name] = [list(flat[i * columns:(i + 1) * columns]) for i in range(rows)]
    return tensors


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def eigenvectors(matrix):
    """Eigenvalues and eigenvectors of a symmetric matrix, the largest first: cyclic Jacobi."""
    a, n = [row[:] for row in matrix], len(matrix)
    v = [[float(i == j) for j in range(n)] for i in range(n)]  # rows become eigenvectors
    size = sum(x * x for row in a for x in row)
    for _ in range(30):
        if sum(a[i][j] ** 2 for i in range(n) for j in range(i)) <= 1e-24 * size:
            break
        for p in range(n):
            for q in range(p + 1, n):
                if a[p][q] == 0:
                    continue
                theta = (a[q][q] - a[p][p]) / (2 * a[p][q])
                t = math.copysign(1, theta) / (abs(theta) + math.sqrt(theta * theta + 1))
                c = 1 / math.sqrt(t * t + 1)
                s = t * c
                for row in a:
                    row[p], row[q] = c * row[p] - s * row[q], s * row[p] + c * row[q]
                for m in (a, v):
                    m[p], m[q] = ([c * x - s * y for x, y in zip(m[p], m[q])],
                                  [s * x + c * y for x, y in zip(m[p], m[q])])
    order = sorted(range(n), key=lambda i: -a[i][i])
    return [a[i][i] for i in order], [v[i] for i in order]


def right_singular_vectors(a):
    """The rows of V^T in A = U S V^T, through the eigenvectors of A A^T, where A has few rows."""
    values, u = eigenvectors([[dot(x, y) for y in a] for x in a])
    columns = list(zip(*a))
    return [[dot(w, c) / math.sqrt(s) for c in columns] for s, w in zip(values, u) if s > 1e-12 * values[0]]


def phi(first, second):
    """{"i,j": phi} of two lists of orthonormal vectors."""
    squares = [[dot(x, y) ** 2 for y in second] for x in first]
    return {f"{i},{j}": sum(sum(row[:j]) for row in squares[:i]) / min(i, j)
            for i in COUNTS[0] for j in COUNTS[1] if i <= len(first) and j <= len(second)}


def similarities(small, large, modules):
    """phi of a middle layer's A in two adapter folders, for each of these modules."""
    files = [read_tensors(os.path.join(folder, "adapter_model.safetensors")) for folder in (small, large)]
    layers = sorted({int(name.split(".layers.")[1].split(".")[0]) for name in files[0] if ".layers." in name})
    layer = layers[len(layers) // 2]
    result = dict(layer=layer)
    for module in modules:
        name = next(n for n in files[0] if f".layers.{layer}." in n and n.endswith(f".{module}.lora_A.weight"))
        result["width"] = len(files[0][name][0])
        result[module] = phi(*(right_singular_vectors(tensors[name]) for tensors in files))
    return result
